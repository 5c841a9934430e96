"""Where images come from: data sets, checked at opening, and loaders that deliver them as bytes on the device.

A name is imported when it is first used: the processes that decode images and write files start from modules of this
package, and most of them need no PyTorch, whose import takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch, Loader
    from .choose import Choice, choose_loader, make_loader
    from .crops import Augmentation
    from .dataset import AnySplit, Dataset, Published
    from .datasets import REGISTRY, DataOptions, DatasetName, find, open_dataset
    from .errors import DataError, LoaderDied
    from .loader_options import LoaderOptions
    from .order import Order, check_batch_size
    from .preparation import prepare
    from .resident import ResidentLoader
    from .resize import resized
    from .split import Split
    from .streamed import StreamedSplit, in_memory

HOMES = {
    "Batch": "batch",
    "Loader": "batch",
    "Choice": "choose",
    "choose_loader": "choose",
    "make_loader": "choose",
    "Augmentation": "crops",
    "AnySplit": "dataset",
    "Dataset": "dataset",
    "Published": "dataset",
    "Split": "split",
    "REGISTRY": "datasets",
    "DataOptions": "datasets",
    "DatasetName": "datasets",
    "find": "datasets",
    "open_dataset": "datasets",
    "DataError": "errors",
    "LoaderDied": "errors",
    "LoaderOptions": "loader_options",
    "Order": "order",
    "check_batch_size": "order",
    "prepare": "preparation",
    "ResidentLoader": "resident",
    "resized": "resize",
    "StreamedSplit": "streamed",
    "in_memory": "streamed",
}

__all__ = [
    "REGISTRY",
    "AnySplit",
    "Augmentation",
    "Batch",
    "Choice",
    "DataError",
    "DataOptions",
    "Dataset",
    "DatasetName",
    "Loader",
    "LoaderDied",
    "LoaderOptions",
    "Order",
    "Published",
    "ResidentLoader",
    "Split",
    "StreamedSplit",
    "check_batch_size",
    "choose_loader",
    "find",
    "in_memory",
    "make_loader",
    "open_dataset",
    "prepare",
    "resized",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
