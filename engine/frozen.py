"""A net's twin for passes that never need a weight gradient: attacks, and the generator's proposals.

The twin has the net's modules and shares its tensors, but none of its parameters requires a gradient. That is what
keeps a *compiled* attack pass at two units: torch.compile fixes the backward pass when it traces the forward, and
computes the gradient of every parameter that requires one, whatever is asked for later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .models import PaddedConv2d

# A subclass may do more than these, such as timm's BatchNorm that holds an activation.
FOLDABLE_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FOLDABLE_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, PaddedConv2d)


class FrozenTwin:
    """A net without weight gradients, in a mode and a precision of its own.

    In train mode its BatchNorm layers update the running statistics of the net itself, whose buffers they share.

    Args:
        net: in its final place and memory format, and never moved again.
        training: the mode that the twin stays in.
        half: bfloat16 or float16 to keep the weights of convolutions and linear layers in, as autocast would cast them
            in every pass; None shares the net's own weights.
        fold: merge each BatchNorm into the convolution whose output it alone reads, so that a pass computes no
            BatchNorm; for eval mode.

    Attributes:
        net: the twin.
        folded: names of the BatchNorm layers that were merged.
        unfolded: why none could be looked for; None if they were.
    """

    def __init__(self, net: nn.Module, *, training: bool, half: torch.dtype | None = None, fold: bool = False) -> None:
        if fold and training:
            raise ValueError("fold is for eval mode: in train mode BatchNorm depends on the batch")
        pairs, self.unfolded = _conv_bn_pairs(net) if fold else ([], None)
        copies = _half_copies(net, half) if half is not None else {}
        # A deep copy that is told, of every tensor, what to put in its place copies nothing but modules.
        twins = {id(p): copies.get(p, nn.Parameter(p.detach(), requires_grad=False)) for p in net.parameters()}
        shared: dict[int, object] = {**twins, **{id(buffer): buffer for buffer in net.buffers()}}
        self.net = copy.deepcopy(net, shared).train(training)
        self._folds = [self._fold(net, conv, norm) for conv, norm in pairs]
        self.folded = [norm for _, norm in pairs]
        folded = {id(fold.conv.weight) for fold in self._folds} | {id(fold.conv.bias) for fold in self._folds}
        self._copies = [(twin, source) for source, twin in copies.items() if id(source) not in folded]

    def _fold(self, net: nn.Module, conv_name: str, norm_name: str) -> _Fold:
        conv, norm, twin = net.get_submodule(conv_name), net.get_submodule(norm_name), self.net.get_submodule(conv_name)
        assert isinstance(conv, _ConvNd)
        assert isinstance(norm, _BatchNorm)
        assert isinstance(twin, _ConvNd)
        twin.weight = nn.Parameter(torch.empty_like(twin.weight), requires_grad=False)
        twin.bias = nn.Parameter(twin.weight.new_empty(conv.out_channels), requires_grad=False)
        self.net.set_submodule(norm_name, nn.Identity())
        return _Fold(conv, norm, twin)

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings copied and folded weights up to date with the net's: once in a step, before its first attack pass."""
        if self._copies:
            torch._foreach_copy_([twin for twin, _ in self._copies], [source for _, source in self._copies])
        for fold in self._folds:
            fold.refresh()


class _Fold:
    """One convolution with the BatchNorm behind it, as a convolution of the twin."""

    def __init__(self, conv: _ConvNd, norm: _BatchNorm, twin: _ConvNd) -> None:
        self.conv, self.norm, self.twin = conv, norm, twin

    def refresh(self) -> None:
        """weight = w * gamma / sqrt(var + eps), bias = (b - mean) * gamma / sqrt(var + eps) + beta."""
        norm, twin = self.norm, self.twin
        assert isinstance(norm.running_mean, Tensor)
        assert isinstance(norm.running_var, Tensor)
        assert isinstance(twin.bias, Tensor)
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        twin.weight.copy_(self.conv.weight * scale.reshape(-1, *[1] * (self.conv.weight.dim() - 1)))
        shift = -norm.running_mean if self.conv.bias is None else self.conv.bias - norm.running_mean
        twin.bias.copy_(torch.addcmul(norm.bias, shift, scale) if norm.affine else shift * scale)


def _half_copies(net: nn.Module, half: torch.dtype) -> dict[nn.Parameter, nn.Parameter]:
    """For every parameter that autocast would cast in each pass, memory for its copy in `half`."""
    layers = (module for module in net.modules() if isinstance(module, _ConvNd | nn.Linear))
    return {
        p: nn.Parameter(torch.empty_like(p, dtype=half), requires_grad=False)
        for layer in layers
        for p in layer.parameters(recurse=False)
    }


class _LayerTracer(fx.Tracer):
    """Keeps subclasses of the two kinds of layer whole, like a convolution that pads its channels."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _ConvNd | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _conv_bn_pairs(net: nn.Module) -> tuple[list[tuple[str, str]], str | None]:
    """(names of each convolution and of the BatchNorm that alone reads its output, why there are none to be found)."""
    try:
        graph = _LayerTracer().trace(net)
    except Exception as error:  # whatever a user's forward does that cannot be traced without numbers
        return [], f"its forward pass cannot be traced ({str(error).splitlines()[0]})"
    return list(_pairs(net, graph)), None


def _pairs(net: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    modules = dict(net.named_modules())
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in FOLDABLE_NORMS:
            continue
        source, norm = next(iter(node.all_input_nodes)), modules[node.target]
        if source.op != "call_module" or len(source.users) != 1 or norm.running_mean is None:
            continue
        once = called.count(source.target) == 1 and called.count(node.target) == 1
        if once and type(modules[source.target]) in FOLDABLE_CONVS:
            yield str(source.target), str(node.target)
