"""What the public operations ask of their arguments: one line that names the argument and says what to pass."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def require_tensor(x: Tensor, name: str) -> None:
    """An ordinary tensor, with strides: nothing sparse or quantised."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is {x.layout}: make it dense with to_dense()")


def require_pixels(x: Tensor, name: str = "x") -> None:
    """uint8 pixels, or float32 / float64 pixels in [0, 1]; [N, C, H, W]."""
    require_tensor(x, name)
    if x.dtype not in (torch.uint8, torch.float32, torch.float64):
        raise TypeError(f"{name} must be uint8 pixels (or float32 in [0, 1]), not {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{name} must be [N, C, H, W], not of shape {tuple(x.shape)}")


def require_like(x: Tensor, other: Tensor, name: str, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """A float tensor of x's shape on x's device."""
    require_tensor(other, name)
    if other.dtype not in dtypes:
        raise TypeError(f"{name} must be {', '.join(_plain(d) for d in dtypes)}, not {_plain(other.dtype)}")
    if other.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(other.shape)} but x has {tuple(x.shape)}")
    require_on(x, other, name)


def require_on(x: Tensor, other: Tensor, name: str) -> None:
    """A tensor on x's device."""
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device} but x is on {x.device}: move one of them")


def require_flag(x: Tensor, flag: Tensor | None) -> None:
    """None, or one int32 on x's device that is raised to 1 and never lowered."""
    if flag is None:
        return
    if not isinstance(flag, Tensor) or flag.dtype != torch.int32 or flag.numel() != 1:
        raise TypeError("flag must be an int32 tensor of one element: torch.zeros(1, dtype=torch.int32)")
    require_on(x, flag, "flag")


def require_key(device: torch.device, key: Tensor) -> None:
    """The int64 [3] of `random_key`, on the device."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.shape != (3,):
        raise TypeError("key must be an int64 tensor of shape (3,): make it with random_key(seed, epoch=..., step=...)")
    if key.device != device:
        raise ValueError(f"key is on {key.device} but the images are on {device}: move one of them")


def require_index(device: torch.device, index: Tensor, length: int | None = None) -> None:
    """int64 sample numbers [N], on the device; their values are the caller's promise (checking them would sync)."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index must be int64 sample numbers, not {getattr(index, 'dtype', type(index).__name__)}")
    if index.dim() != 1 or (length is not None and len(index) != length):
        wanted = "[N]" if length is None else f"[{length}], one for each sample of x"
        raise ValueError(f"index must be {wanted}, not of shape {tuple(index.shape)}")
    if index.device != device:
        raise ValueError(f"index is on {index.device} but the images are on {device}: move one of them")


def pixel_units(value: Fraction | float, name: str) -> float:
    """A radius or step size as a float in [0, 1] pixel units."""
    # A tensor would be read on the host: a wait for the device, and a constant for ever in a captured graph.
    if not isinstance(value, Fraction | float | int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a Fraction, not {type(value).__name__}")
    # float(Fraction) is this quotient too, but torch.compile of torch 2.11 cannot trace it.
    number = value.numerator / value.denominator if isinstance(value, Fraction) else float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must lie in [0, 1] pixel units (8/255, say), not {number:g}")
    return number


def require_dtype(dtype: torch.dtype, name: str, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """One of a few dtypes."""
    if dtype not in dtypes:
        raise TypeError(f"{name} must be {', '.join(_plain(d) for d in dtypes)}, not {_plain(dtype)}")


def require_integer(value: int, name: str) -> None:
    """A Python integer, True and False excepted."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")


def require_bool(value: bool, name: str) -> None:
    """True or False and nothing that is only taken for one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")


def require_channels(channels: int, needed: int, name: str) -> None:
    """At least as many channels as there is to put into them."""
    require_integer(channels, "channels")
    if channels < needed:
        raise ValueError(f"channels is {channels}, but {name} {needed}: ask for at least that")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
