"""Nets that would give numbers nobody should report: what is refused, and what is flagged as doubtful.

Refused is what makes a robust accuracy meaningless and has a plain cure: train mode, answers that change from call to
call or with the other images of the batch, probabilities for logits, gradients that are hidden from the attacks.
Flagged is what may make it too high: see Carlini et al., "On Evaluating Adversarial Robustness" (2019), and Athalye et
al., "Obfuscated Gradients Give a False Sense of Security" (2018). All of it costs about ten passes on one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..errors import NotFinite, UsageError
from ..gradients import Objective, attack_loss, input_gradient, summed_cross_entropy
from .attacks import margins, summed_margin

# Of the largest logit. The rounding of fp32 sums, which differs with the batch and the kernel, stays under 1e-5.
REPEAT_TOLERANCE, BATCH_TOLERANCE = 1e-4, 1e-3
# Smaller than any byte image can differ by: a net whose logits stand still under it rounds its input.
PROBE = Fraction(1, 10) / 255
STILL = 0.5  # share of the batch whose logits stand still
PREDICTED = (0.5, 2.0)  # median of the change of the margin over what its gradient predicts; 0.97 to 1.02 on sound nets
HIDDEN = 0.1  # share of the batch without any gradient whose logits move all the same: refused above
VANISHED = (0.01, 0.5)  # share of the right images whose cross-entropy gradient underflows: flagged and refused above
SMALLEST = torch.finfo(torch.float32).tiny  # below it, a number is denormal: digits are lost, or all of it


@dataclass(frozen=True, slots=True)
class NetReport:
    """What the checks found out about a net they did not refuse."""

    classes: int
    warnings: tuple[str, ...] = ()  # a line each: why its numbers are doubtful


def check_net(
    net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: Fraction | None = None, thorough: bool = True
) -> NetReport:
    """Refuses a net or images that would give numbers nobody should report.

    Args:
        net: the classifier.
        images: a float batch [N, C, H, W], as the net would be given it.
        labels: int64 [N].
        epsilon: radius of the attacks in [0, 1] pixel units; by default 8/255.
        thorough: also look for hidden gradients and unsteady answers; otherwise only at modes, dtypes and ranges.

    Raises:
        UsageError: with the cause and the cure, as the module says.
    """
    _check_modes(net)
    _check_batch(images, labels)
    if not thorough:
        gradient, logits = _gradient(net, images, labels, summed_cross_entropy)
        _check_outputs(logits, gradient, labels)
        return NetReport(logits.shape[1])
    with torch.no_grad():  # before the gradients: what changes from call to call has none that mean anything
        logits = net(images)
        _check_logits(logits, labels)
        _check_steady(net, images, logits)
    gradient, logits = _gradient(net, images, labels, summed_cross_entropy)
    _check_outputs(logits, gradient, labels)
    slope, logits = _gradient(net, images, labels, summed_margin)
    radius = float(Fraction(8, 255) if epsilon is None else epsilon)
    warnings = _check_hidden(net, images, logits, slope, radius)
    warnings += _check_saturated(logits, labels, gradient, slope)
    warnings += _check_predictions(net, images, labels, logits, slope)
    return NetReport(logits.shape[1], tuple(warnings))


def _check_modes(net: nn.Module) -> None:
    training = next((name or "the net" for name, module in net.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(f"{training} is in train mode: call net.eval() before an evaluation")
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    other = next((name for name, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32), None)
    if other is not None:
        raise UsageError(f"{other} is {tensors[other].dtype}: attack in full precision, call net.float()")


def _check_batch(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.float32 or not (images.min() >= 0 and images.max() <= 1):
        raise UsageError(
            f"images must be float32 in [0, 1], not {images.dtype} in [{images.min():.3g}, {images.max():.3g}]: put "
            "normalisation inside the net"
        )
    if labels.min() < 0:
        raise UsageError(f"labels must be classes, 0 or above, not {int(labels.min())}")


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        raise UsageError(f"the net returns a tensor {list(logits.shape)} for {len(labels)} images, not their logits")
    if logits.dtype != torch.float32:
        raise UsageError(f"the net returns {logits.dtype}: attack in full precision, without autocast")
    if not logits.isfinite().all():
        raise NotFinite("the net returns logits that are not finite: its weights are damaged")
    if labels.max() >= logits.shape[1]:
        raise UsageError(
            f"the net has {logits.shape[1]} outputs, but there is an image of class {int(labels.max())}: it was "
            "trained on another data set"
        )
    if logits.min() >= 0 and torch.allclose(logits.sum(dim=1), torch.ones(()).to(logits), atol=1e-4):
        raise UsageError("the net returns probabilities: remove its softmax, attacks need logits")


def _check_outputs(logits: Tensor, gradient: Tensor, labels: Tensor) -> None:
    _check_logits(logits, labels)
    if not gradient.isfinite().all():
        raise NotFinite("the net's input gradients are not finite: no attack can use them, so no number means anything")


def _check_steady(net: nn.Module, images: Tensor, logits: Tensor) -> None:
    """The same image gets the same logits, in every call and whatever else is in the batch."""
    scale = logits.abs().max().clamp(min=1e-6)
    for _ in range(2):
        if (net(images) - logits).abs().max() > REPEAT_TOLERANCE * scale:
            raise UsageError(
                "the net answers the same images otherwise in every call: dropout or noise is on in it; switch it off, "
                "an attack must see what is evaluated"
            )
    some = images[: -(-len(images) // 2)]
    among_others = net(torch.cat([some, 1 - some]))[: len(some)]
    if (among_others - logits[: len(some)]).abs().max() > BATCH_TOLERANCE * scale:
        raise UsageError(
            "the net's answer to an image depends on the others of its batch: its BatchNorm takes the batch's "
            "statistics, as in train mode; let it use its running ones"
        )


def _gradient(net: nn.Module, images: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    try:
        return input_gradient(attack_loss(net, objective), images, labels)
    except RuntimeError as error:  # torch has no type of its own for it
        if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
            raise
        raise UsageError(
            "no gradient reaches the images: something in the net detaches them (detach, no_grad, round, NumPy), and "
            "gradient attacks would find nothing; let it through"
        ) from None


def _share(found: Tensor, among: Tensor | None = None) -> float:
    """The share of True in a bool [N], or of those that are `among`; 0 of none."""
    chosen = found if among is None else found[among]
    return chosen.float().mean().item() if len(chosen) else 0.0


@torch.no_grad()
def _check_hidden(net: nn.Module, images: Tensor, logits: Tensor, slope: Tensor, radius: float) -> list[str]:
    """Images without any gradient, although their logits move within the ball: detached, rounded or clamped."""
    flat = slope.flatten(1).abs().amax(dim=1) < SMALLEST
    if not flat.any():
        return []
    # A fixed pattern instead of random signs, so that nobody's random state is touched: of two opposite corners.
    pattern = torch.arange(images[0].numel(), device=images.device).reshape(images[0].shape)
    corner = torch.where(pattern % 3 % 2 == 0, radius, -radius)
    moves = torch.zeros_like(flat)
    least = 1e-5 * logits.abs().max()
    for offset in (corner, -corner):
        moves |= ((net((images + offset).clamp(0, 1)) - logits).abs() > least).any(dim=1)
    if _share(flat & moves) > HIDDEN:
        raise UsageError(
            f"the net's logits move with {int((flat & moves).sum())} of {len(images)} images, but their input "
            "gradients are zero: something in it detaches, clamps or rounds (quantised input), and gradient attacks "
            "find nothing; let gradients through"
        )
    return [
        f"the input gradients of {int(flat.sum())} of {len(images)} images are zero: gradient attacks see nothing there"
    ]


def _check_saturated(logits: Tensor, labels: Tensor, gradient: Tensor, slope: Tensor) -> list[str]:
    """Right images whose cross entropy is so small that its gradient underflows, where the margin's does not."""
    right = logits.argmax(dim=1) == labels
    there = slope.abs().flatten(1) >= SMALLEST
    lost = there & (gradient.abs().flatten(1) < SMALLEST)
    vanished = right & (2 * lost.sum(dim=1) > there.sum(dim=1))
    share = _share(vanished, right)
    if share <= VANISHED[0]:
        return []
    said = (
        f"the cross-entropy gradients of {int(vanished.sum())} of {int(right.sum())} right images underflow to zero, "
        f"logits lie {margins(logits, labels)[right].neg().median():.3g} apart (saturated softmax)"
    )
    if share > VANISHED[1]:
        raise UsageError(f"{said}: FGSM and PGD find nothing; divide the net's logits by a constant")
    return [f"{said}: FGSM and PGD are blunted there"]


@torch.no_grad()
def _check_predictions(net: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, slope: Tensor) -> list[str]:
    """Whether a small step changes the margin as its gradient predicts; on a net that rounds, nothing changes."""
    moved = slope.flatten(1).abs().amax(dim=1) >= SMALLEST
    if not moved.any():
        return []
    before = margins(logits, labels)
    worst = 1.0
    for sign in (1, -1):
        probe = (images + sign * float(PROBE) * slope.sign()).clamp(0, 1)
        answer = net(probe)
        if _share((answer == logits).all(dim=1), moved) > STILL:
            return [
                f"the net's logits stand still under steps of {float(PROBE) * 255:g}/255: it rounds its input, and its "
                "gradients are straight-through estimates; an attack made for it may find more"
            ]
        predicted = (slope * (probe - images)).flatten(1).sum(dim=1)
        found = (margins(answer, labels) - before) / predicted
        ratio = found[moved & (predicted != 0)].nanmedian().item()
        if abs(ratio - 1) > abs(worst - 1):
            worst = ratio
    if PREDICTED[0] <= worst <= PREDICTED[1]:
        return []
    return [
        f"a step of {float(PROBE) * 255:g}/255 along the net's input gradients changes its logits {worst:.2g} times "
        "as much as they predict: the gradients are not its own, and attacks that use them may find too little"
    ]
