"""Philox against Random123's known answers, and what the engine builds on it."""

from __future__ import annotations

import pytest
import torch

from hardfast.kernels import Purpose, derived_seed, permutation, philox, random_key, sample_words

ONES = 0xFFFFFFFF
# Random123, kat_vectors: philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "seed", "answer"), KNOWN)
def test_known_answers(counter: tuple[int, ...], seed: int, answer: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox((c0, c1, c2, c3), seed)) == answer


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    zero = torch.tensor(0)
    with pytest.raises(ValueError, match="seed"):
        philox((zero, zero, zero, zero), seed)


def test_permutation_is_one_and_moves_with_every_argument() -> None:
    orders = [
        permutation(1000, seed=seed, purpose=purpose, epoch=epoch)
        for seed in (0, 1)
        for purpose in (Purpose.ORDER, Purpose.HELDOUT)
        for epoch in (0, 1)
    ]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert torch.equal(orders[0], permutation(1000, seed=0, purpose=Purpose.ORDER, epoch=0))


def test_words_of_a_slice_are_the_slice_of_the_words() -> None:
    index = torch.arange(100)
    whole = sample_words(index, seed=5, purpose=Purpose.AUGMENT, epoch=2)
    part = sample_words(index[30:50], seed=5, purpose=Purpose.AUGMENT, epoch=2)
    assert all(torch.equal(w[30:50], p) for w, p in zip(whole, part, strict=True))


def test_derived_seeds_differ() -> None:
    seeds = {derived_seed(seed, purpose) for seed in range(50) for purpose in Purpose}
    assert len(seeds) == 50 * len(Purpose)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_key_holds_all_64_bits_of_its_seed() -> None:
    """As the signed integer with the same bits, and drawing what the seed itself draws."""
    for seed in (0, 1, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1):
        key = random_key(seed, epoch=3, step=4)
        assert key.tolist() == [seed if seed < 2**63 else seed - 2**64, 3, 4]
        counter = (torch.arange(5), 1, 2, 3)
        for a, b in zip(philox(counter, key[0]), philox(counter, seed), strict=True):
            assert torch.equal(a, b)
