"""The backends by their names."""

from __future__ import annotations

from ..source import ImageSource
from .spec import Backend, FeedSpec


def open_backend(spec: FeedSpec, source: ImageSource) -> Backend:
    """The backend that the spec names; imports what it needs."""
    if spec.backend == "ffcv":
        from .ffcv_backend import FfcvBackend

        return FfcvBackend(spec, source)
    if spec.backend == "dali":
        from .dali_backend import DaliBackend

        return DaliBackend(spec, source)
    from .torch_backend import TorchBackend

    return TorchBackend(spec, source)
