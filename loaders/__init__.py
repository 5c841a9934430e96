"""Where images come from: data sets, checked at opening, and loaders that deliver them as bytes on the device."""

from .batch import Batch, Loader
from .crops import Augmentation
from .dataset import Dataset, Published, Split
from .datasets import REGISTRY, DataOptions, DatasetName, open_dataset, prepare
from .errors import DataError, LoaderDied
from .loader_options import LoaderOptions
from .order import Order, check_batch_size
from .resident import ResidentLoader
from .resize import resized

__all__ = [
    "REGISTRY",
    "Augmentation",
    "Batch",
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
    "check_batch_size",
    "open_dataset",
    "prepare",
    "resized",
]
