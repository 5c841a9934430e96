"""The typed errors of the engine. Each message is one line: what is wrong, where, and what to do."""


class UsageError(ValueError):
    """Wrong use: an option, a recipe, a run folder or a net that cannot do what was asked. The command exits 2."""


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or of another net."""


class CaptureError(RuntimeError):
    """A step cannot be captured as a CUDA graph."""


class Stopped(Exception):
    """A signal asked for a stop, and everything is saved. The command exits 75."""


class StoppedByGuard(RuntimeError):
    """Going on would only cost time. The command exits 76."""


class Diverged(StoppedByGuard):
    """Training produced losses, gradients or weights that are not finite, and going back did not help."""


class Collapsed(StoppedByGuard):
    """Catastrophic overfitting, again after several rollbacks."""


class EvaluationError(RuntimeError):
    """An attack's result contradicts itself, so its number must not be reported. The command exits 2."""


class NotFinite(UsageError, EvaluationError):
    """A net's logits or input gradients are not finite: its weights are damaged, or its training has diverged."""
