"""Robust accuracy as reviewers believe it: the attacks of the paper's tables on a net that may be attacked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import to_float
from ...loaders import Split, StreamedSplit, in_memory, open_dataset, resized
from .. import console
from ..environment import choose_device
from ..errors import UsageError
from ..run_folder import RunFolder, Which, restored_model
from ..threat import format_pixels, parse_pixels
from . import autoattack
from .attack_flags import contradictions, square_stands_out
from .attack_stages import ATTACKS, LIBRARY_ATTACKS, AttackName, AttackPlan
from .files import AttackReport, EvaluationFiles, earlier_attacks, identity, images_of, run_files
from .net_checks import check_net
from .partial_results import PartialResult, conditions
from .stages import Progress, Stage, run_stages

MOST_IMAGES = 1 << 20  # in a forward pass

__all__ = [
    "ATTACKS",
    "LIBRARY_ATTACKS",
    "AttackName",
    "AttackReport",
    "Evaluation",
    "Partial",
    "earlier_attacks",
    "evaluate",
    "evaluate_into",
    "evaluate_net",
    "first_images",
    "identity",
    "split_sha256",
]

DEFAULT_ATTACKS: tuple[AttackName, ...] = ("clean", "fgsm", "pgd-10", "pgd-20", "cw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a net was attacked with, and what it withstood."""

    samples: int
    epsilon: str  # like 8/255
    seed: int
    attacks: dict[str, AttackReport] = field(default_factory=dict)

    @property
    def accuracy(self) -> dict[str, float]:
        """Percent by attack."""
        return {name: report.accuracy for name, report in self.attacks.items()}


@dataclass(frozen=True, slots=True)
class Partial:
    """Where the progress of attacks is kept until an evaluation is done.

    Attributes:
        folder: for the files of `partial_results.py`.
        about: what the caller knows of the net and the images: their sha256 at least, JSON values.
    """

    folder: Path
    about: Mapping[str, Any]


def evaluate_net(
    net: nn.Module,
    split: Split,
    *,
    epsilon: Fraction,
    attacks: Sequence[str] = ("clean", "pgd-10"),
    step: Fraction | None = None,
    seed: int = 0,
    batch_size: int = 250,
    samples_of: Mapping[str, int] | None = None,
    test_images: int | None = None,
    partial: Partial | None = None,
    thorough: bool = True,
    on_result: Callable[[str, AttackReport], None] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Attacks a classifier and counts what it still gets right, in full fp32 (no TF32).

    Args:
        net: maps float32 images in [0, 1] to logits; in eval mode, float32.
        split: test images as bytes, on the net's device.
        epsilon: radius in (0, 1] pixel units.
        attacks: names out of `ATTACKS`, each once.
        step: step size of PGD and C&W, above 0; by default epsilon / 4.
        seed: of every random start.
        batch_size: images in a forward pass.
        samples_of: for long attacks, how many of the first images they see; the number is reported.
        test_images: how many the whole test set has, if `split` is only the first of them.
        partial: where the progress of every attack is kept; an interrupted evaluation goes on from there.
        thorough: look for hidden gradients and unsteady answers first: `check_net`.
        on_result: told of each attack as soon as it is done.
        quiet: no lines and no bars.

    Raises:
        UsageError: no attack, an unknown or a repeated one, a radius or step of 0, or a net whose numbers nobody should
            report (`check_net`).
        EvaluationError: an attack's result contradicts itself.
    """
    samples_of = samples_of or {}
    unknown = [name for name in (*attacks, *samples_of) if name not in ATTACKS]
    if not attacks:
        raise UsageError(f"attacks names none: name at least one of {' '.join(ATTACKS)}")
    if unknown:
        raise UsageError(f"attack '{unknown[0]}' is not known: choose from {' '.join(ATTACKS)}")
    repeated = next((name for name in attacks if list(attacks).count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"attacks names {repeated} more than once: name each attack once")
    if epsilon <= 0 or (step is not None and step <= 0):
        raise UsageError(f"epsilon and attack-step must be positive, not {epsilon} and {step}: attacks need room")
    if any(count < 1 for count in samples_of.values()):
        name = min(samples_of, key=lambda attack: samples_of[attack])
        raise UsageError(f"{name}-samples must be at least 1, not {samples_of[name]}")
    if not len(split) or not 1 <= batch_size <= MOST_IMAGES:
        raise UsageError(
            f"samples and batch-size must be at least 1, batch-size at most {MOST_IMAGES:,}, not {len(split)} and "
            f"{batch_size}"
        )
    result = Evaluation(samples=len(split), epsilon=format_pixels(epsilon), seed=seed)
    standing: dict[str, Tensor] = {}
    files = []
    with _full_precision():
        first = to_float(split.images[:batch_size].permute(0, 3, 1, 2))
        checked = check_net(net, first, split.labels[:batch_size], epsilon=epsilon, thorough=thorough)
        if not quiet:
            _warn(checked.warnings)
        for name in attacks:
            if name in LIBRARY_ATTACKS:  # before the first attack, not after the last but one
                autoattack.check_available(LIBRARY_ATTACKS[name], classes=checked.classes)
        plan = AttackPlan(net, checked.classes, epsilon, step, seed, first.device)
        for name in attacks:
            count = min(samples_of.get(name, len(split)), len(split))
            file = None
            if partial is not None:
                about = {"samples": count, "batch_size": batch_size, **plan.decides(name), **conditions(first.device)}
                file = PartialResult(partial.folder, name, {**partial.about, **about})
                files.append(file)
            with console.bar(None, name, "passes", quiet=quiet) as bar:
                stages = plan.stages(name, bar)
                progress = _progress(file, name, count, stages, quiet=quiet)
                save = None if file is None else file.save
                run_stages(stages, split, progress, batch_size=batch_size, bar=bar, save=save)
            standing[name] = progress.standing
            after = {stage: percent for stage, percent in progress.accuracy.items() if stage not in ("clean", name)}
            doubts = [*progress.warnings, *square_stands_out(after, count), *contradictions(name, standing)]
            report = AttackReport(
                accuracy=100 * int(progress.standing.sum()) / count,
                samples=count,
                seconds=progress.seconds,
                test_images=len(split) if test_images is None else test_images,
                stages=after,
                warnings=[*(checked.warnings if name != "clean" else ()), *doubts],
            )
            if file is not None:
                file.save_now(progress)  # done: should a later attack be interrupted, this one is not run again
            result.attacks[name] = report
            if on_result is not None:
                on_result(name, report)
            if not quiet:
                images = images_of(asdict(report))
                console.line(f"  {name:<7} {report.accuracy:6.2f} %  on {images} images, {report.seconds:.1f} s")
                _warn(doubts)
    for file in files:
        file.discard()
    return result


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        console.line(f"  doubtful: {doubt}")


def _progress(file: PartialResult | None, name: str, count: int, stages: Sequence[Stage], *, quiet: bool) -> Progress:
    """Where an attack begins: at what an interrupted evaluation left, or with nothing done."""
    found = file.load(count, stages) if file is not None else None
    if found is not None and not quiet:
        where = "is done"
        if found.stage < len(stages):
            queue = int(found.entered.sum())
            where = f"goes on at image {found.done:,} of {queue:,} of {stages[found.stage].name}"
        console.line(f"  {name:<7} {where}: an evaluation like this one was interrupted")
    return Progress.begin(count) if found is None else found


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 off: its 10 bits of mantissa blunt the gradients that an attack lives on."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def split_sha256(split: Split) -> str:
    """Of the bytes of its images and labels."""
    digest = hashlib.sha256(split.images.cpu().contiguous().numpy().data)
    digest.update(split.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def first_images(split: Split | StreamedSplit, samples: int | None, *, size: int | None = None) -> Split:
    """The first so many test images, in memory.

    Args:
        split: all of them.
        samples: how many; None is all.
        size: pixels on a side; None is the split's own.

    Raises:
        UsageError: fewer than one is asked for.
        DataError: an image that has to be decoded is damaged.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    part = split.take(torch.arange(min(samples or len(split), len(split))))
    return in_memory(part) if size is None else resized(part, size)


def evaluate_into(
    files: EvaluationFiles, net: nn.Module, split: Split, *, device: torch.device, **options: Any
) -> dict[str, Any]:
    """Evaluates any net on test images and writes what comes out, attack by attack; a killed one goes on.

    Args:
        files: where it is written; what they are `about` must identify the weights, by a sha256.
        net: as `evaluate_net` wants it, on any device.
        split: test images on the CPU, all or the first of them (`first_images`).
        device: where it runs.
        options: of `evaluate_net`: epsilon, attacks, step, seed, batch_size, samples_of, test_images.

    Returns:
        What evaluation.json holds.

    Raises:
        UsageError, EvaluationError: as `evaluate_net`.
    """
    report: dict[str, Any] = {}

    def keep(name: str, result: AttackReport) -> None:
        nonlocal report
        report = files.keep(name, result, samples=len(split))

    partial = Partial(files.folder, {**files.about, "images_sha256": split_sha256(split)})
    evaluate_net(net.to(device), split.to(device), partial=partial, on_result=keep, **options)
    return report


def evaluate(
    run: Path | str,
    *,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    checkpoint: Which = "best",
    samples: int | None = None,
    samples_of: Mapping[str, int] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: str = "auto",
    data_root: str | None = None,
) -> dict[str, Any]:
    """Evaluates a run on its data set's test images, at the run's epsilon.

    Each attack's result is written as soon as it is there: to evaluation.json, which keeps the newest result of every
    attack on one checkpoint, and as a line of evaluations.jsonl, which keeps them all. Within an attack the progress
    is kept, so that the same command goes on where it was killed.

    Args:
        run: the run's folder.
        attacks: names out of `ATTACKS`.
        checkpoint: `best` on the held-out images, or `last`.
        samples: the first so many test images; by default all.
        samples_of: for single attacks, how many of those.
        batch_size: images in a forward pass.
        seed: of every random start.
        device: auto, cpu, cuda or cuda:N.
        data_root: where the data sets lie now, if not where the run found them.

    Returns:
        What evaluation.json holds.

    Raises:
        UsageError, DataError, CheckpointError: wrong use, as `evaluate_net`, `open_dataset` and `load_model` say.
        EvaluationError: an attack's result contradicts itself.
    """
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed must lie in [0, 2**64), not {seed}")
    folder = RunFolder(run)
    recipe, found = folder.recipe(), folder.checkpoint(checkpoint)
    target, why = choose_device(device)
    test = open_dataset(recipe.data.at(data_root)).test
    part = first_images(test, samples, size=recipe.test_size)
    images = images_of({"samples": len(part), "test_images": len(test)})
    console.line(
        f"{folder.path}: checkpoint {checkpoint} (epoch {found.record.at.epoch}), epsilon {recipe.epsilon}, "
        f"{images} test images of {recipe.data.name}, on {target} ({why})"
    )
    return evaluate_into(
        run_files(folder, identity(checkpoint, found, recipe, seed)),
        restored_model(recipe, found),
        part,
        device=target,
        epsilon=parse_pixels(recipe.epsilon, "epsilon"),
        attacks=attacks,
        step=recipe.parsed_attack_step(),
        seed=seed,
        batch_size=batch_size,
        samples_of=samples_of,
        test_images=len(test),
    )
