"""Robust accuracy as reviewers believe it: the attacks of the paper's tables on a net that may be attacked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import to_float
from ..loaders import Split, open_dataset
from . import console
from .attacks import GradientAttack, gradient_attacks
from .autoattack import run_autoattack
from .environment import choose_device
from .errors import UsageError
from .run_folder import RunFolder, Which, restored_model, write_whole
from .threat import format_pixels, parse_pixels

ATTACKS = ("clean", "fgsm", "pgd-10", "pgd-20", "pgd-50", "cw", "apgd", "aa")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracies in percent, and on what they were measured."""

    samples: int
    epsilon: str  # like 8/255
    seed: int
    accuracy: dict[str, float] = field(default_factory=dict)
    samples_of: dict[str, int] = field(default_factory=dict)  # where an attack saw fewer than `samples`
    seconds: dict[str, float] = field(default_factory=dict)
    aa_stages: dict[str, float] = field(default_factory=dict)  # robust accuracy after each attack of AutoAttack
    warnings: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A line per attack: accuracy, images, seconds."""
        rows = [
            [name, f"{value:.2f} %", str(self.samples_of.get(name, self.samples)), f"{self.seconds[name]:.1f}"]
            for name, value in self.accuracy.items()
        ]
        return console.table(["attack", "accuracy", "images", "seconds"], rows)

    def as_json(self) -> dict[str, Any]:
        """What evaluation.json holds, less the checkpoint."""
        return {
            "samples": self.samples,
            "epsilon": self.epsilon,
            "accuracy": self.accuracy,
            "samples_of": self.samples_of,
            "seconds": self.seconds,
            "aa_stages": self.aa_stages,
            "seed": self.seed,
            "warnings": self.warnings,
        }


def evaluate_net(
    net: nn.Module,
    split: Split,
    *,
    epsilon: Fraction,
    attacks: Sequence[str] = ("clean", "pgd-10"),
    step: Fraction | None = None,
    seed: int = 0,
    batch_size: int = 250,
    samples_of: dict[str, int] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Attacks a classifier and counts what it still gets right.

    Args:
        net: maps float32 images in [0, 1] to logits; in eval mode, float32.
        split: test images as bytes, on the net's device.
        epsilon: radius in [0, 1] pixel units.
        attacks: names out of `ATTACKS`.
        step: step size of PGD and C&W; by default epsilon / 4.
        seed: of every random start.
        batch_size: images in a forward pass.
        samples_of: for long attacks, how many of the first images they see; the number is reported.
        quiet: no lines and no bars.

    Raises:
        UsageError: an unknown attack, or a net whose numbers nobody should report (`check_net`).
        EvaluationError: an attack's result contradicts itself.
    """
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown:
        raise UsageError(f"attack '{unknown[0]}' is not known: choose from {' '.join(ATTACKS)}")
    if not len(split):
        raise UsageError("samples must be at least 1: there is no image to evaluate")
    check_net(net, to_float(_nchw(split.images[:batch_size])))
    fewer = {name: count for name, count in (samples_of or {}).items() if name in attacks and count < len(split)}
    result = Evaluation(samples=len(split), epsilon=format_pixels(epsilon), seed=seed, samples_of=fewer)
    known = gradient_attacks(epsilon, step)
    for name in attacks:
        started = time.perf_counter()
        part = split.take(torch.arange(fewer.get(name, len(split)), device=split.labels.device))
        if name in ("apgd", "aa"):
            found = run_autoattack(
                net,
                to_float(_nchw(part.images)),
                part.labels,
                epsilon=epsilon,
                version="standard" if name == "aa" else "apgd-ce",
                seed=seed,
                batch_size=batch_size,
                label=name,
            )
            robust = found.robust
            result.warnings.extend(found.warnings)
            if name == "aa":
                result.aa_stages.update(found.stages)
        else:
            robust = _robust(net, part, known.get(name), name, epsilon, seed, batch_size, quiet)
        result.accuracy[name] = 100 * robust.double().mean().item()
        result.seconds[name] = time.perf_counter() - started
        if not quiet:
            console.line(
                f"  {name:<7} {result.accuracy[name]:6.2f} %  on {len(part)} images, {result.seconds[name]:.1f} s"
            )
    return result


def _robust(
    net: nn.Module,
    split: Split,
    attack: GradientAttack | None,
    name: str,
    epsilon: Fraction,
    seed: int,
    batch_size: int,
    quiet: bool,
) -> Tensor:
    """bool [N]: which images the net classifies correctly, after the attack if there is one."""
    correct = []
    batches = -(-len(split) // batch_size)
    with console.bar(batches, name, "batches") as progress:
        for index, image, labels in _batches(split, batch_size):
            x = _nchw(image)
            shown = to_float(x)
            if attack is not None:
                shown = attack.perturb(net, x, labels, index, epsilon=epsilon, seed=seed)
            with torch.no_grad():
                correct.append(net(shown).argmax(dim=1) == labels)
            progress.update(1)
    return torch.cat(correct)


def _batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    index = torch.arange(len(split), device=split.labels.device)
    yield from zip(index.split(size), split.images.split(size), split.labels.split(size), strict=True)


def _nchw(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


@torch.no_grad()
def check_net(net: nn.Module, images: Tensor) -> None:
    """Refuses a net or images that would give numbers nobody should report.

    Args:
        net: the classifier.
        images: a float batch [N, C, H, W], as the net would be given it.

    Raises:
        UsageError: the net is in train mode or in half precision, the images lie outside [0, 1], or the outputs are
            probabilities instead of logits, or not finite.
    """
    training = next((name or "the net" for name, module in net.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(f"{training} is in train mode: call net.eval() before an evaluation")
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    half = next((name for name, t in tensors.items() if t.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise UsageError(f"{half} is {tensors[half].dtype}: attack in full precision, call net.float()")
    if images.dtype != torch.float32 or not (images.min() >= 0 and images.max() <= 1):
        raise UsageError(
            f"images must be float32 in [0, 1], not {images.dtype} in [{images.min():.3g}, {images.max():.3g}]: put "
            "normalisation inside the net"
        )
    logits = net(images)
    if logits.dtype != torch.float32:
        raise UsageError(f"the net returns {logits.dtype}: attack in full precision, without autocast")
    if not logits.isfinite().all():
        raise UsageError("the net returns logits that are not finite: its weights are damaged")
    if logits.min() >= 0 and torch.allclose(logits.sum(dim=1), torch.ones(()).to(logits), atol=1e-4):
        raise UsageError("the net returns probabilities: remove its softmax, attacks need logits")


def evaluate(
    run: Path | str,
    *,
    attacks: Sequence[str] = ("clean", "fgsm", "pgd-10", "pgd-20", "cw"),
    checkpoint: Which = "best",
    samples: int | None = None,
    samples_of: dict[str, int] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluates a run on its data set's test images, at the run's epsilon, and writes evaluation.json.

    Attacks that were evaluated before on the same checkpoint, images, epsilon and seed stay in the file.

    Args:
        run: the run's folder.
        attacks: names out of `ATTACKS`.
        checkpoint: `best` by held-out PGD-10, or `last`.
        samples: the first so many test images; by default all.
        samples_of: for single attacks, how many of those.
        batch_size: images in a forward pass.
        seed: of every random start.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        What evaluation.json holds.

    Raises:
        UsageError, DataError, CheckpointError: wrong use, as `evaluate_net`, `open_dataset` and `load_model` say.
        EvaluationError: an attack's result contradicts itself.
    """
    folder = RunFolder(run)
    recipe, found = folder.recipe(), folder.checkpoint(checkpoint)
    target, _ = choose_device(device)
    net = restored_model(recipe, found).to(target)
    test = open_dataset(recipe.data).test
    if samples is not None:
        if samples < 1:
            raise UsageError(f"samples must be at least 1, not {samples}")
        test = test.take(torch.arange(min(samples, len(test))))
    console.line(
        f"{folder.path}: checkpoint {checkpoint} (epoch {found.record['at']['epoch']}), epsilon {recipe.epsilon}, "
        f"{len(test)} test images of {recipe.data.name}"
    )
    result = evaluate_net(
        net,
        test.to(target),
        epsilon=parse_pixels(recipe.epsilon, "epsilon"),
        attacks=attacks,
        step=None if recipe.attack_step is None else parse_pixels(recipe.attack_step, "attack-step"),
        seed=seed,
        batch_size=batch_size,
        samples_of=samples_of,
    )
    report = {"checkpoint": checkpoint, "step": found.record["at"]["total"], **result.as_json()}
    merged = _with_earlier(folder.path / "evaluation.json", report)
    write_whole(folder.path / "evaluation.json", json.dumps(merged, indent=2) + "\n")
    for warning in result.warnings:
        console.line(f"AutoAttack warns: {warning}")
    return merged


def _with_earlier(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Adds to a report the attacks of an earlier one on the same checkpoint, images, epsilon and seed."""
    try:
        earlier = json.loads(path.read_text())
        if any(earlier[key] != report[key] for key in ("checkpoint", "step", "samples", "epsilon", "seed")):
            return report
        merged = dict(report)
        for key in ("accuracy", "samples_of", "seconds", "aa_stages"):
            merged[key] = {**earlier[key], **report[key]}
        return merged
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours: this evaluation replaces it
        return report
