"""What goes wrong with data: each error is one line that says what is wrong, where, and what to do."""


class DataError(ValueError):
    """A missing, damaged or mislabelled file, or an option that does not fit the data set."""


class MissingDataError(DataError):
    """A data set, or a file of it, is not there: fetching it may help."""


class LoaderDied(DataError):
    """What feeds a loader has died, was stopped, or delivers nothing any more."""
