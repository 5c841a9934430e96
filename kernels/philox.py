"""Counter-based randomness: Philox4x32-10 in plain integer arithmetic, on any device.

Every random number of the engine is a pure function of (run seed, purpose, epoch, sample, element), so it does not
depend on batch composition, loader, worker count, world size, CUDA graphs or resuming.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), the Random123 constants.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

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


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words for each counter.

    Args:
        counter: four broadcastable int64 tensors whose values lie in [0, 2**32).
        seed: the 64-bit key, in [0, 2**64).

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2**32).

    Raises:
        ValueError: seed is outside [0, 2**64).
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in [0, 2**64), not {seed}")
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & MASK32, seed >> 32
    for _ in range(ROUNDS):
        # The 64-bit product wraps modulo 2**64 in a signed int64; shift and mask recover its unsigned halves.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        hi0, lo0 = (p0 >> 32) & MASK32, p0 & MASK32
        hi1, lo1 = (p1 >> 32) & MASK32, p1 & MASK32
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def sample_words(
    index: Tensor, *, seed: int, purpose: Purpose, epoch: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each sample of `index` (int64, any shape), for one purpose and epoch."""
    zero = torch.zeros((), dtype=torch.int64, device=index.device)
    return philox((zero, index, zero + epoch, zero + int(purpose)), seed)


def permutation(
    size: int, *, seed: int, purpose: Purpose, epoch: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """A uniform random order of range(size): the samples sorted by a 62-bit random key (int64, shape [size])."""
    high, low, _, _ = sample_words(torch.arange(size, device=device), seed=seed, purpose=purpose, epoch=epoch)
    return torch.argsort(((high >> 2) << 32) | low, stable=True)


def derived_seed(seed: int, purpose: Purpose) -> int:
    """A 63-bit seed for a generator that is not ours: PyTorch's, where it initialises weights."""
    high, low, _, _ = sample_words(torch.zeros((), dtype=torch.int64), seed=seed, purpose=purpose)
    return ((int(high) << 32) | int(low)) >> 1
