"""The elementwise work of an adversarial step: exact projection, counter-based noise, augmentation.

Today every operation is its plain-PyTorch reference (`reference.py`), on every device.
"""

from .philox import Purpose, derived_seed, permutation, philox, sample_words
from .projection import PixelBounds, pixel_bounds
from .reference import (
    GeneratorInputs,
    augment,
    generator_input,
    initial_point,
    project,
    random_start,
    signed_step,
    to_float,
)

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
    "random_start",
    "sample_words",
    "signed_step",
    "to_float",
]
