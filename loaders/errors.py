"""The one error of bad data: a missing, damaged or mislabelled file, or an option that does not fit the data set."""


class DataError(ValueError):
    """What is wrong, where, and what to do, in one line."""


class MissingDataError(DataError):
    """A data set, or a file of it, is not there: fetching it may help."""
