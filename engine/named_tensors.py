"""Tensors by name, as files hold them, and the nets and optimisers that they come from and go back to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointError

Tensors = dict[str, Tensor]


def load_strictly(
    net: nn.Module,
    tensors: Tensors,
    source: Path,
    *,
    kind: str = "the net of config.json",
    fix: str = "it is damaged, or of another net",
) -> None:
    """Copies tensors into a net whose names, shapes and dtypes must be exactly theirs.

    Args:
        net: left alone where something does not fit.
        tensors: on the CPU.
        source: of the tensors, for the message.
        kind: what the net is, for the message.
        fix: what may be wrong or what to do, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown, or of another shape or dtype.
    """
    wanted = net.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{source} has no tensor '{name}', which {kind} has: {fix}")
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{source}: '{name}' is {found.dtype} {tuple(found.shape)}, but {kind} has {tensor.dtype} "
                f"{tuple(tensor.shape)}: {fix}"
            )
    unknown = next((name for name in tensors if name not in wanted), None)
    if unknown is not None:
        raise CheckpointError(f"{source} has a tensor '{unknown}' that {kind} has not: {fix}")
    net.load_state_dict(tensors, strict=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, net: nn.Module, prefix: str) -> Tensors:
    """An optimiser's state (momentum; Adam's moments and step), named by the parameter it belongs to."""
    tensors = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{prefix}/{name}/{key}"] = value
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, net: nn.Module, prefix: str, tensors: Tensors, source: Path
) -> None:
    """The inverse of `optimizer_tensors`: every parameter of the net gets its state back, in place where it has one.

    Raises:
        CheckpointError: a tensor is missing, or of another shape or dtype than its parameter.
    """
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        for key in _state_keys(optimizer):
            value = tensors.get(f"{prefix}/{name}/{key}")
            # Adam counts its steps on the CPU, or on the device if it is fused; moments lie where their parameter lies,
            # in its memory format.
            place = parameter.device if optimizer.param_groups[0].get("fused") else "cpu"
            like = torch.zeros((), device=place) if key == "step" else parameter.detach()
            if value is None or value.shape != like.shape or value.dtype != like.dtype:
                found = "no tensor" if value is None else f"{value.dtype} {tuple(value.shape)} as"
                raise CheckpointError(f"{source} has {found} '{prefix}/{name}/{key}': it is of another run or damaged")
            state.setdefault(key, torch.empty_like(like)).copy_(value)


def _state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The tensors an optimiser keeps for each parameter once it has stepped."""
    if isinstance(optimizer, torch.optim.Adam):
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()
