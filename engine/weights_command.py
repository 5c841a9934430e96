"""The command `hardfast evaluate FILE`: the attacks and the table of a run's, on weights from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..loaders import DataOptions, Dataset, DatasetName, open_dataset
from . import console
from .environment import choose_device
from .errors import UsageError
from .evaluate_command import GOES_ON, of_attacks, result_table
from .evaluation import DEFAULT_ATTACKS, AttackName, evaluate_into, first_images
from .evaluation.files import EvaluationFiles, images_of
from .foreign import ForeignNet, ForeignOptions, read_foreign
from .models import NetShape
from .output_files import check_places
from .parsing import parse
from .signals import broken_off
from .threat import format_pixels, parse_pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackedImages:
    """The data set whose test images are attacked."""

    name: DatasetName
    """Which one; see `hardfast data list`."""

    root: str = "data"
    """Folder that holds the data sets, each in a folder of its own name."""

    image_size: int | None = None
    """Pixels on a side, for the data sets whose images may be of any."""


@dataclass(frozen=True, kw_only=True)
class WeightsArguments:
    """Attacks a net whose weights were trained elsewhere. Killed, the same command goes on.

    FILE is a .safetensors file, or a state dict that torch.save wrote (.pt .pth .bin .ckpt .tar), alone or in a
    checkpoint. It is read as plain data: nothing in it is executed.
    """

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """The file."""

    data: AttackedImages

    epsilon: str
    """Radius of the L-infinity ball, in grey levels over 255, like 8/255."""

    attacks: tuple[AttackName, ...] = DEFAULT_ATTACKS
    """Which attacks. apgd and aa (AutoAttack, standard) take minutes to hours and need pyautoattack."""

    attack_step: str | None = None
    """Step size of the PGD and C&W attacks, like 2/255; by default a quarter of epsilon."""

    samples: int | None = None
    """Only the first so many test images; the number stands beside every accuracy."""

    aa_samples: int | None = None
    """Only the first so many of these for aa, which is the longest attack."""

    batch_size: int = 250
    """Images in a forward pass."""

    seed: int = 0
    """Of every random start."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    json: str | None = None
    """Where the result goes; by default FILE.evaluation.json beside the weights. Every result is also a line of the
    file of that name that ends in .jsonl."""

    model: ForeignOptions = field(default_factory=ForeignOptions)


def run_evaluate_weights(argv: Sequence[str]) -> int:
    """hardfast evaluate FILE --data.name NAME --epsilon 8/255 [options]"""
    file = shlex.quote(argv[0]) if argv else "FILE"  # what the messages advise works as it is typed
    asked = parse(WeightsArguments, argv, f"hardfast evaluate {file}")
    with broken_off(GOES_ON):
        report = _evaluated(asked)
    console.line()
    console.line(result_table([of_attacks(report, asked.attacks)]))
    return 0


def _evaluated(asked: WeightsArguments) -> dict[str, Any]:
    """What the JSON file holds, attack by attack.

    Raises:
        UsageError, DataError, CheckpointError: wrong use; the file is damaged or of another net; or they do not fit.
        EvaluationError: an attack's result contradicts itself.
    """
    epsilon = parse_pixels(asked.epsilon, "epsilon", positive=True)
    step = None if asked.attack_step is None else parse_pixels(asked.attack_step, "attack-step", positive=True)
    if not 0 <= asked.seed < 1 << 64:
        raise UsageError(f"seed must lie in [0, 2**64), not {asked.seed}")
    device, why = choose_device(asked.device)
    place = Path(f"{asked.weights}.evaluation.json" if asked.json is None else asked.json)
    data = open_dataset(DataOptions(name=asked.data.name, root=asked.data.root, image_size=asked.data.image_size))
    height, width, channels = data.image_shape
    shape = NetShape(num_classes=data.num_classes, in_channels=channels)
    found = read_foreign(asked.weights, asked.model, shape=shape, image_size=(height, width))
    _check_fit(asked.weights, found, data)
    check_places(json=place)
    part = first_images(data.test, asked.samples)
    images = images_of({"samples": len(part), "test_images": len(data.test)})
    for note in found.notes:
        console.line(f"{asked.weights}: {note}")
    console.line(
        f"{asked.weights}: {found.options.name}, epsilon {asked.epsilon}, {images} test images of {data.name}, on "
        f"{device} ({why})"
    )
    about = {
        "weights": Path(asked.weights).name,
        "weights_sha256": found.sha256,
        "model": found.options.name,
        "shortcut": found.options.shortcut,
        "mean": None if found.options.mean is None else list(found.options.mean),
        "std": None if found.options.std is None else list(found.options.std),
        "data": data.name,
        "image_size": height,
        "epsilon": format_pixels(epsilon),
        "attack_step": format_pixels(epsilon / 4 if step is None else step),
        "seed": asked.seed,
    }
    files = EvaluationFiles(
        place, about, history=place.with_suffix(".jsonl"), folder=place.with_name(f"{place.stem}.partial")
    )
    return evaluate_into(
        files,
        found.net,
        part,
        device=device,
        epsilon=epsilon,
        attacks=asked.attacks,
        step=step,
        seed=asked.seed,
        batch_size=asked.batch_size,
        samples_of={} if asked.aa_samples is None else {"aa": asked.aa_samples},
        test_images=len(data.test),
    )


def _check_fit(weights: str, found: ForeignNet, data: Dataset) -> None:
    """Refuses images that the net was not made for: its figures would mean nothing."""
    if found.shape.in_channels != data.image_shape[2]:
        raise UsageError(
            f"{weights} is a net for images of {found.shape.in_channels} channels, those of data.name {data.name} have "
            f"{data.image_shape[2]}: choose its own data set with --data.name"
        )
    if found.shape.num_classes != data.num_classes:
        raise UsageError(
            f"{weights} is a net for {found.shape.num_classes} classes, data.name {data.name} has {data.num_classes}: "
            "choose its own data set with --data.name"
        )
