"""The elementwise work of an adversarial step: exact projection, counter-based noise, augmentation.

Each operation is a Triton kernel on a GPU and its plain-PyTorch reference (`reference.py`) on a CPU, bit-equal in
float32, registered under `torch.ops.hardfast` for eager and compiled use.
"""

from .crop import augment
from .initial import initial_point
from .noise import random_start
from .perturb import project, signed_step
from .philox import Purpose, derived_seed, permutation, philox, random_key, sample_words
from .pixels import GeneratorInputs, generator_input, to_float
from .projection import PixelBounds, pixel_bounds

__all__ = [
    "GeneratorInputs",
    "PixelBounds",
    "Purpose",
    "augment",
    "derived_seed",
    "generator_input",
    "initial_point",
    "permutation",
    "philox",
    "pixel_bounds",
    "project",
    "random_key",
    "random_start",
    "sample_words",
    "signed_step",
    "to_float",
]
