"""Counter-based randomness: Philox4x32-10 in plain integer arithmetic, on any device.

Every random number of the engine is a pure function of (run seed, purpose, epoch, sample, element), so it does not
depend on batch composition, loader, worker count, world size, CUDA graphs or resuming.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), the Random123 constants.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from .checks import require_integer

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a random number is for: the fourth counter word, so no two uses ever share a counter."""

    ORDER = 1
    AUGMENT = 2
    START = 3
    HELDOUT = 4
    TEST_SPLIT = 5
    INITIALISE = 6
    EVALUATE = 7
    SYNTHETIC = 8
    INITIALISE_GENERATOR = 9
    CROP = 10
    ROLLBACK = 11


def philox(counter: tuple[Tensor | int, ...], seed: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words for each counter.

    Args:
        counter: four words in [0, 2**32): broadcastable int64 tensors, or integers beside at least one tensor.
        seed: the 64-bit key, in [0, 2**64); as a tensor, int64 with the same 64 bits.

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2**32).

    Raises:
        ValueError: seed is outside [0, 2**64).
    """
    if isinstance(seed, int) and not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in [0, 2**64), not {seed}")
    device = next(word.device for word in counter if isinstance(word, Tensor))
    full = (torch.full((), w, dtype=torch.int64, device=device) if isinstance(w, int) else w for w in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*full)
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(ROUNDS):
        # The 64-bit product wraps modulo 2**64 in a signed int64; shift and mask recover its unsigned halves.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        hi0, lo0 = (p0 >> 32) & MASK32, p0 & MASK32
        hi1, lo1 = (p1 >> 32) & MASK32, p1 & MASK32
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def sample_words(
    index: Tensor, *, seed: Tensor | int, purpose: Purpose, epoch: Tensor | int = 0, step: Tensor | int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each sample of `index` (int64, any shape), for one purpose, epoch and step."""
    return philox((0, index, epoch, int(purpose) + (step << 8)), seed)


def random_key(seed: int, *, epoch: int = 0, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """(seed, epoch, step) as an int64 tensor [3], which `random_start` and `augment` read on the device.

    A captured CUDA graph draws fresh numbers once its key was written anew (`key[1].fill_(epoch)`); numbers handed over
    from Python would be frozen into it.

    Args:
        seed: in [0, 2**64).
        epoch: in [0, 2**32): an epoch, or a restart.
        step: in [0, 2**24). The engine leaves it at 0: its numbers depend on the sample and the epoch alone, so not on
            the batch a sample fell into.
        device: where the kernels run.

    Raises:
        TypeError, ValueError: one of them is no integer, or outside its range.
    """
    for name, value, limit in (("seed", seed, 64), ("epoch", epoch, 32), ("step", step, 24)):
        require_integer(value, name)
        if not 0 <= value < 1 << limit:
            raise ValueError(f"{name} must lie in [0, 2**{limit}), not {value}")
    return torch.tensor([seed - (seed >> 63 << 64), epoch, step], dtype=torch.int64, device=device)


def permutation(
    size: int, *, seed: int, purpose: Purpose, epoch: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """A uniform random order of range(size): the samples sorted by a 62-bit random key (int64, shape [size])."""
    high, low, _, _ = sample_words(torch.arange(size, device=device), seed=seed, purpose=purpose, epoch=epoch)
    return torch.argsort(((high >> 2) << 32) | low, stable=True)


def derived_seed(seed: int, purpose: Purpose, number: int = 0) -> int:
    """A 63-bit seed, the `number`-th for its purpose: of a generator that is not ours, PyTorch's, where it initialises
    weights, or of a run that begins to draw other numbers.
    """
    high, low, _, _ = sample_words(torch.tensor(number), seed=seed, purpose=purpose)
    return ((int(high) << 32) | int(low)) >> 1
