"""Where images come from: data sets, checked at opening, and loaders that deliver them as bytes on the device."""

from .batch import Batch, Loader
from .choose import Choice, choose_loader, make_loader
from .crops import Augmentation
from .dataset import AnySplit, Dataset, Published, Split
from .datasets import REGISTRY, DataOptions, DatasetName, find, open_dataset
from .errors import DataError, LoaderDied
from .loader_options import LoaderOptions
from .order import Order, check_batch_size
from .prepare import prepare
from .resident import ResidentLoader
from .resize import resized
from .streamed import StreamedSplit, in_memory

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
