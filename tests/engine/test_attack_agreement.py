"""PGD and APGD-CE against second implementations that share no code with ours, on one robust net and 1,000 images.

PGD is torchattacks'; APGD is adv-lib's, and AutoAttack's own class called without our adapter. What may differ is the
random start, so PGD's accuracy is a mean over three seeds: its deviation between seeds is 0.1 to 0.2 points. APGD's,
after 100 iterations, is 0.1 here and needs no mean.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine import evaluate_net, load_model
from hardfast.engine.threat import parse_pixels
from hardfast.kernels import to_float
from hardfast.loaders import DataOptions, Split, open_dataset

EPSILON = parse_pixels("32/255", "epsilon")  # the net was trained at 24/255: nine tenths of the images withstand that
IMAGES = 1000
TOLERANCE = 0.5  # points of accuracy: five images
PGD_SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


@pytest.fixture(scope="module")
def split() -> Split:
    """All 360 test images of the digits, then held-out and training images: an attack cares for none of that."""
    data = open_dataset(DataOptions(name="digits", image_size=8))
    parts = (data.test, data.heldout, data.train)
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return Split(images[:IMAGES], labels[:IMAGES])


@pytest.fixture(scope="module")
def images(split: Split) -> Tensor:
    return to_float(split.images.permute(0, 3, 1, 2)).contiguous()


@pytest.fixture(scope="module")
def our_apgd(net: nn.Module, split: Split) -> float:
    return ours(net, split, "apgd", seed=0)


def ours(net: nn.Module, split: Split, attack: str, *, seed: int) -> float:
    return evaluate_net(net, split, epsilon=EPSILON, attacks=(attack,), seed=seed, quiet=True).accuracy[attack]


def withstood(net: nn.Module, images: Tensor, x_adv: Tensor, labels: Tensor) -> float:
    """Percent right on adversarial images, which must be in the ball for the number to mean the same."""
    assert (x_adv - images).abs().max() <= float(EPSILON) + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    with torch.no_grad():
        right: Tensor = net(x_adv).argmax(dim=1) == labels
    return 100 * right.float().mean().item()


def agree(mine: float, theirs: float) -> None:
    print(f"ours {mine:.2f} %, theirs {theirs:.2f} %")
    assert 30 < theirs < 80  # an attack that breaks all or nothing could not be told from another
    assert abs(mine - theirs) <= TOLERANCE


def adv_lib_auto_pgd() -> ModuleType:
    """adv-lib's module of APGD by its file: the package around it imports plots that need a server's client."""
    package = find_spec("adv_lib")
    assert package is not None
    assert package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "attacks" / "auto_pgd.py"
    spec = spec_from_file_location("adv_lib_auto_pgd", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pgd_20_agrees_with_torchattacks(net: nn.Module, split: Split, images: Tensor) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.PGD(net, eps=float(EPSILON), alpha=float(EPSILON / 4), steps=20, random_start=True)
    theirs = []
    for seed in PGD_SEEDS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            theirs.append(withstood(net, images, attack(images, split.labels), split.labels))
    agree(mean(ours(net, split, "pgd-20", seed=seed) for seed in PGD_SEEDS), mean(theirs))


def test_apgd_agrees_with_adv_lib(net: nn.Module, split: Split, images: Tensor, our_apgd: float) -> None:
    if find_spec("adv_lib") is None:
        pytest.skip("adv-lib is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x_adv = adv_lib_auto_pgd().apgd(
            net, images, split.labels, eps=float(EPSILON), norm=float("inf"),
            n_iter=100, n_restarts=1, loss_function="ce", use_rs=True,
        )  # fmt: skip
    agree(our_apgd, withstood(net, images, x_adv, split.labels))


def test_apgd_agrees_with_autoattacks_own_class(net: nn.Module, split: Split, images: Tensor, our_apgd: float) -> None:
    """The class itself with other random starts, on all images at once: neither our adapter nor AutoAttack's loop."""
    autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    attack = autopgd.APGDAttack(
        net, n_iter=100, norm="Linf", n_restarts=1, eps=float(EPSILON), seed=1, loss="ce", rho=0.75, device="cpu"
    )
    with torch.random.fork_rng(devices=[]):
        x_adv = attack.perturb(images, split.labels)
    agree(our_apgd, withstood(net, images, x_adv, split.labels))
