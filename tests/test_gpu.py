"""What a GPU must do exactly as the CPU does. `make test-gpu`."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from hardfast.engine import evaluate, recipes, train
from hardfast.kernels import Purpose, augment, permutation, pixel_bounds, random_key, random_start, signed_step

pytestmark = pytest.mark.gpu


def test_references_are_bit_equal_on_both_devices() -> None:
    draw = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=draw)
    gradient = torch.randn(8, 3, 16, 16, generator=draw)
    results = []
    for device in ("cpu", "cuda"):
        order = permutation(40, seed=1, purpose=Purpose.ORDER, epoch=2, device=device)
        index, key = order[:8], random_key(1, epoch=2, device=device)
        x = augment(data.to(device), index, key=key, padding=4, flip=True).permute(0, 3, 1, 2)
        eta = random_start(x, index, key=key, radius=Fraction(8, 255))
        bounds = pixel_bounds(Fraction(8, 255), box=True, device=device)
        x_adv, delta = signed_step(x, eta, gradient.to(device), alpha=Fraction(8, 255), bounds=bounds)
        results.append([t.cpu() for t in (order, x, eta, x_adv, delta)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_digits_become_robust(tmp_path: Path) -> None:
    for package in ("pydantic", "safetensors", "sklearn"):
        pytest.importorskip(package)
    recipe = replace(recipes.get("digits"), epochs=15)
    assert train(recipe, tmp_path / "run", device="cuda").finished
    accuracy = evaluate(tmp_path / "run", attacks=("clean", "pgd-20"), device="cuda")["accuracy"]
    assert accuracy["clean"] > 90
    assert accuracy["pgd-20"] > 40
