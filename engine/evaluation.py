"""Robust accuracy as reviewers believe it: the attacks of the paper's tables on a net that may be attacked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..kernels import to_float
from ..loaders import Split, open_dataset
from . import autoattack, console
from .attacks import GradientAttack, gradient_attacks
from .checkpoint import Checkpoint
from .environment import choose_device
from .errors import EvaluationError, UsageError
from .gradients import attack_loss, input_gradient
from .recipe import Recipe
from .run_folder import RunFolder, Which, restored_model, write_whole
from .threat import format_pixels, parse_pixels

AttackName = Literal["clean", "fgsm", "pgd-10", "pgd-20", "pgd-50", "cw", "apgd", "aa"]
ATTACKS: tuple[str, ...] = get_args(AttackName)
LIBRARY_ATTACKS: dict[str, autoattack.Version] = {"apgd": "apgd-ce", "aa": "standard"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackReport:
    """One attack's result."""

    accuracy: float  # percent of `samples` that the net still gets right
    samples: int
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)  # AutoAttack: accuracy after each of its attacks
    warnings: list[str] = field(default_factory=list)  # what AutoAttack flagged


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
    on_result: Callable[[str, AttackReport], None] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Attacks a classifier and counts what it still gets right, in full fp32 (no TF32).

    Args:
        net: maps float32 images in [0, 1] to logits; in eval mode, float32.
        split: test images as bytes, on the net's device.
        epsilon: radius in [0, 1] pixel units.
        attacks: names out of `ATTACKS`.
        step: step size of PGD and C&W; by default epsilon / 4.
        seed: of every random start.
        batch_size: images in a forward pass.
        samples_of: for long attacks, how many of the first images they see; the number is reported.
        on_result: told of each attack as soon as it is done.
        quiet: no lines and no bars.

    Raises:
        UsageError: an unknown attack, or a net whose numbers nobody should report (`check_net`).
        EvaluationError: an attack's result contradicts itself.
    """
    samples_of = samples_of or {}
    unknown = [name for name in (*attacks, *samples_of) if name not in ATTACKS]
    if unknown or not attacks:
        raise UsageError(f"attack '{unknown[0] if unknown else ''}' is not known: choose from {' '.join(ATTACKS)}")
    if any(count < 1 for count in samples_of.values()):
        raise UsageError(f"samples of an attack must be at least 1, not {min(samples_of.values())}")
    if not len(split) or batch_size < 1:
        raise UsageError(f"samples and batch-size must be at least 1, not {len(split)} and {batch_size}")
    result = Evaluation(samples=len(split), epsilon=format_pixels(epsilon), seed=seed)
    with _full_precision():
        logits = check_net(net, to_float(_nchw(split.images[:batch_size])), split.labels[:batch_size])
        for name in attacks:
            if name in LIBRARY_ATTACKS:  # before the first attack, not after the last but one
                autoattack.check_available(LIBRARY_ATTACKS[name], classes=logits.shape[1])
        known = gradient_attacks(epsilon, step)
        for name in attacks:
            count = min(samples_of.get(name, len(split)), len(split))
            part = split.take(torch.arange(count, device=split.labels.device))
            began = time.perf_counter()
            extra: dict[str, Any] = {}
            if name in LIBRARY_ATTACKS:
                found = autoattack.run_autoattack(
                    net,
                    to_float(_nchw(part.images)),
                    part.labels,
                    epsilon=epsilon,
                    version=LIBRARY_ATTACKS[name],
                    seed=seed,
                    batch_size=batch_size,
                    bar=console.bar(None, name, "passes", quiet=quiet),
                )
                robust, extra = found.robust, {"stages": found.stages, "warnings": found.warnings}
            else:
                batches = console.bar(-(-count // batch_size), name, "batches", quiet=quiet)
                with batches:
                    parts = []
                    for index, image, labels in _batches(part, batch_size):
                        x = _nchw(image)
                        parts.append(_withstands(net, x, labels, index, known.get(name), epsilon, seed))
                        batches.update(1)
                robust = torch.cat(parts)
            report = AttackReport(
                accuracy=100 * int(robust.sum()) / count, samples=count, seconds=time.perf_counter() - began, **extra
            )
            result.attacks[name] = report
            if on_result is not None:
                on_result(name, report)
            if not quiet:
                console.line(f"  {name:<7} {report.accuracy:6.2f} %  on {count} images, {report.seconds:.1f} s")
    return result


def _withstands(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    index: Tensor,
    attack: GradientAttack | None,
    epsilon: Fraction,
    seed: int,
) -> Tensor:
    """bool [N]: which of the images x (uint8 [N, C, H, W]) the net gets right, attacked if there is an attack."""
    shown = to_float(x) if attack is None else attack.perturb(net, x, labels, index, epsilon=epsilon, seed=seed)
    with torch.no_grad():
        logits = net(shown)
    if not (shown.isfinite().all() and logits.isfinite().all()):
        raise EvaluationError("an attack met gradients or logits that are not finite: its accuracy means nothing")
    return logits.argmax(dim=1) == labels


def _batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    index = torch.arange(len(split), device=split.labels.device)
    yield from zip(index.split(size), split.images.split(size), split.labels.split(size), strict=True)


def _nchw(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 off: its 10 bits of mantissa blunt the gradients that an attack lives on."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def check_net(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Refuses a net or images that would give numbers nobody should report.

    Args:
        net: the classifier.
        images: a float batch [N, C, H, W], as the net would be given it.
        labels: int64 [N].

    Returns:
        The logits [N, K] of the batch.

    Raises:
        UsageError: the net is in train mode or not in float32, the images lie outside [0, 1], the outputs are
            probabilities instead of logits, or logits or input gradients are not finite.
    """
    training = next((name or "the net" for name, module in net.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(f"{training} is in train mode: call net.eval() before an evaluation")
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    other = next((name for name, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32), None)
    if other is not None:
        raise UsageError(f"{other} is {tensors[other].dtype}: attack in full precision, call net.float()")
    if images.dtype != torch.float32 or not (images.min() >= 0 and images.max() <= 1):
        raise UsageError(
            f"images must be float32 in [0, 1], not {images.dtype} in [{images.min():.3g}, {images.max():.3g}]: put "
            "normalisation inside the net"
        )
    gradient, logits = input_gradient(attack_loss(net), images, labels)
    if logits.dtype != torch.float32:
        raise UsageError(f"the net returns {logits.dtype}: attack in full precision, without autocast")
    if not logits.isfinite().all():
        raise UsageError("the net returns logits that are not finite: its weights are damaged")
    if not gradient.isfinite().all():
        raise UsageError(
            "the net's input gradients are not finite: no attack can use them, so no number means anything"
        )
    if logits.min() >= 0 and torch.allclose(logits.sum(dim=1), torch.ones(()).to(logits), atol=1e-4):
        raise UsageError("the net returns probabilities: remove its softmax, attacks need logits")
    return logits


def evaluate(
    run: Path | str,
    *,
    attacks: Sequence[str] = ("clean", "fgsm", "pgd-10", "pgd-20", "cw"),
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
    attack on one checkpoint, and as a line of evaluations.jsonl, which keeps them all.

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
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed must lie in [0, 2**64), not {seed}")
    folder = RunFolder(run)
    recipe, found = folder.recipe(), folder.checkpoint(checkpoint)
    target, why = choose_device(device)
    net = restored_model(recipe, found).to(target)
    test = open_dataset(recipe.data.at(data_root)).test
    test = test.take(torch.arange(min(samples or len(test), len(test))))
    about = identity(checkpoint, found, recipe, seed)
    done: dict[str, AttackReport] = {}
    report: dict[str, Any] = {}
    console.line(
        f"{folder.path}: checkpoint {checkpoint} (epoch {found.record.at.epoch}), epsilon {recipe.epsilon}, "
        f"{len(test)} test images of {recipe.data.name}, on {target} ({why})"
    )

    def keep(name: str, result: AttackReport) -> None:
        done[name] = result
        report.update(_keep(folder, about, len(test), done))
        for warning in result.warnings:
            console.line(f"  AutoAttack warns: {warning}")

    evaluate_net(
        net,
        test.to(target),
        epsilon=parse_pixels(recipe.epsilon, "epsilon"),
        attacks=attacks,
        step=recipe.parsed_attack_step(),
        seed=seed,
        batch_size=batch_size,
        samples_of=samples_of,
        on_result=keep,
    )
    return report


def _keep(folder: RunFolder, about: dict[str, Any], samples: int, done: dict[str, AttackReport]) -> dict[str, Any]:
    """Writes the newest of `done` to evaluation.json, which may have grown since, and to the history."""
    name, result = list(done.items())[-1]
    path = folder.evaluation
    attacks = earlier_attacks(path, about) | {attack: asdict(found) for attack, found in done.items()}
    accuracy = {attack: found["accuracy"] for attack, found in attacks.items()}
    # `samples` is that of the evaluation that wrote last; where an earlier attack saw other images, `attacks` says so.
    report = {**about, "samples": samples, "accuracy": accuracy, "attacks": attacks}
    write_whole(path, json.dumps(report, indent=2) + "\n")
    line = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **about, "attack": name, **asdict(result)}
    with (folder.path / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return report


def earlier_attacks(path: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The attacks of an evaluation.json, if it is `about` the same checkpoint, weights, epsilon and seed.

    Returns:
        `AttackReport`s as dicts, each with its own number of images; empty if there are none, or the file is not ours.
    """
    try:
        earlier = json.loads(path.read_text())
        if any(earlier[key] != value for key, value in about.items()):
            return {}
        return {name: asdict(AttackReport(**found)) for name, found in earlier["attacks"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the history keeps what was there
        return {}


def identity(which: Which, checkpoint: Checkpoint, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What two evaluations must share for their attacks to stand in one evaluation.json."""
    return {
        "checkpoint": which,
        "step": checkpoint.record.at.total,
        "model_sha256": checkpoint.model_sha256,
        "epsilon": recipe.epsilon,
        "seed": seed,
    }
