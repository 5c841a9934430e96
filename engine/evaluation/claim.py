"""RobustBench's claim: the JSON of a model's entry in its leaderboard, `model_info/DATASET/Linf/NAME.json`.

Accuracies are strings in percent with two decimals and the radius is a string, as in the entries that are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..run_folder import write_whole
from .files import images_of

# The leaderboards of the L-infinity threat model, and the one radius of each.
LEADERBOARDS = {"cifar10": "8/255", "cifar100": "8/255", "imagenet": "4/255"}
ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "preact_resnet18": "PreActResNet-18",
    "resnet50": "ResNet-50",
    "wide_resnet34_10": "WideResNet-34-10",
}
NEEDED = ("clean", "aa")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimOptions:
    """What a claim says that no evaluation knows. `unknown` stands where nothing is given."""

    name: str = "unknown"
    """Title of the paper."""

    authors: str = "unknown"
    """Its authors, separated by commas."""

    link: str = "unknown"
    """Where it is to be read."""

    venue: str = "Unpublished"
    """Where it was published, like "ICLR 2020"."""

    architecture: str | None = None
    """Of the net, like PreActResNet-18; by default the recipe's model under the leaderboard's name."""

    reported: str | None = None
    """Robust accuracy in percent that the paper reports; by default AutoAttack's, as evaluated here."""

    additional_data: bool = False
    """The net was trained on more than the data set's own training images."""

    forward_passes: int = 1
    """Forward passes that the net makes for one answer."""

    def __post_init__(self) -> None:
        if self.forward_passes < 1:
            raise UsageError(f"claim.forward-passes must be at least 1, not {self.forward_passes}")
        try:
            valid = self.reported is None or 0 <= float(self.reported) <= 100
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"claim.reported must be a robust accuracy in percent like 48.50, not '{self.reported}'")


def check_claimable(place: Path, dataset: str, epsilon: str) -> None:
    """Refuses a claim for which there is no leaderboard, or no folder: before the attacks, not after.

    Raises:
        UsageError: naming what is wrong.
    """
    if dataset not in LEADERBOARDS:
        raise UsageError(f"claim: RobustBench has no leaderboard of {dataset}, only of {', '.join(LEADERBOARDS)}")
    if epsilon != LEADERBOARDS[dataset]:
        raise UsageError(
            f"claim: RobustBench's leaderboard of {dataset} is for epsilon {LEADERBOARDS[dataset]}, not {epsilon}"
        )
    if not place.parent.is_dir():
        raise UsageError(f"claim: there is no folder {place.parent} for it: make it first")


def check_attacks(
    attacks: Sequence[str], known: Mapping[str, Mapping[str, Any]], whole: Mapping[str, bool], checkpoint: str
) -> None:
    """Refuses a claim whose figures will not be there.

    Args:
        attacks: that are going to run.
        known: earlier attacks on this checkpoint, as `earlier_attacks` returns them.
        whole: of each attack that is going to run, whether it sees all test images.
        checkpoint: best or last.

    Raises:
        UsageError: naming the figure that is missing, and the command that finds it.
    """
    for name in NEEDED:
        if name in attacks:
            if not whole[name]:
                raise UsageError(f"claim: {name} would see some of the test images only: drop --samples, --aa-samples")
        elif name not in known:
            raise UsageError(f"claim: checkpoint {checkpoint} has no {name} yet: add --attacks clean aa")
        elif known[name]["samples"] != known[name]["test_images"]:
            raise UsageError(f"claim: {name} saw {images_of(known[name])} test images, not all: add --attacks clean aa")


def write_claim(place: Path, report: Mapping[str, Any], options: ClaimOptions, *, dataset: str, model: str) -> None:
    """Writes the claim of one evaluation.

    Args:
        place: the file.
        report: as evaluation.json holds it.
        options: what no evaluation knows.
        dataset: of the leaderboard.
        model: the recipe's name of the net.

    Raises:
        UsageError: as `check_claimable` and `check_attacks`.
    """
    check_claimable(place, dataset, report["epsilon"])
    check_attacks((), report["attacks"], {}, report["checkpoint"])
    clean, robust = (f"{report['accuracy'][name]:.2f}" for name in NEEDED)
    claim = {
        "link": options.link,
        "name": options.name,
        "authors": options.authors,
        "additional_data": options.additional_data,
        "number_forward_passes": options.forward_passes,
        "dataset": dataset,
        "venue": options.venue,
        "architecture": options.architecture or ARCHITECTURES.get(model, model),
        "eps": report["epsilon"],
        "clean_acc": clean,
        "reported": robust if options.reported is None else options.reported,
        "autoattack_acc": robust,
    }
    if report["attacks"]["aa"]["warnings"]:
        claim["unreliable"] = True  # the leaderboard's own word for a flagged evaluation
    write_whole(place, json.dumps(claim, indent=2) + "\n")
