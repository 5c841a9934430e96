"""Where images come from: data sets, checked at opening, and loaders that deliver them as bytes on the device."""

from .dataset import Dataset, Published, Split
from .datasets import REGISTRY, DataOptions, DatasetName, open_dataset, prepare
from .errors import DataError
from .resident import Batch, Loader, ResidentLoader, check_batch_size
from .resize import resized

__all__ = [
    "REGISTRY",
    "Batch",
    "DataError",
    "DataOptions",
    "Dataset",
    "DatasetName",
    "Loader",
    "Published",
    "ResidentLoader",
    "Split",
    "check_batch_size",
    "open_dataset",
    "prepare",
    "resized",
]
