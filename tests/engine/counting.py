"""Counting convolutions: in eager mode by dispatch, in compiled mode in the graphs that are executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTION, BACKWARD = torch.ops.aten.convolution, torch.ops.aten.convolution_backward


class ConvolutionCounter(TorchDispatchMode):
    """Counts convolution calls by which net they belong to and which gradients their backward computes."""

    def __init__(self, generator_weights: set[int]) -> None:
        super().__init__()
        self.generator_weights = generator_weights
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet is CONVOLUTION:
            owner = "generator" if args[1].data_ptr() in self.generator_weights else "net"
            self.calls[f"{owner} forward"] += 1
        if packet is BACKWARD:
            owner = "generator" if args[2].data_ptr() in self.generator_weights else "net"
            self.calls[f"{owner} input"] += args[10][0]
            self.calls[f"{owner} weight"] += args[10][1]
        return func(*args, **(kwargs or {}))


class GraphCounter:
    """Backends of torch.compile that note, at each execution of a compiled graph, the convolutions in it.

    Attributes:
        executed: of each graph that has convolutions, in the order of execution: how many forward, with the gradient
            of their input, and with that of their weight.
        graphs: how many were compiled.
    """

    def __init__(self) -> None:
        self.executed: list[tuple[int, int, int]] = []
        self.graphs = 0

    def traced(self) -> Callable[..., Any]:
        """Executes the graphs as AOTAutograd traced and partitioned them: what every compiler is given."""
        return aot_autograd(fw_compiler=self._kept, bw_compiler=self._kept, inference_compiler=self._kept)

    def _kept(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return self._noted(graph, lambda arguments: graph(*arguments))

    def inductor(self) -> Callable[..., Any]:
        """Inductor itself, around whose compiled graphs the note is made."""

        def inner(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
            return self._noted(graph, compile_fx_inner(graph, inputs, **options))

        return lambda graph, inputs: compile_fx(graph, inputs, inner_compile=inner)

    def _noted(self, graph: fx.GraphModule, run: Callable[..., Any]) -> Callable[..., Any]:
        self.graphs += 1
        forward = sum(node.target is CONVOLUTION.default for node in graph.graph.nodes)
        masks = [node.args[10] for node in graph.graph.nodes if node.target is BACKWARD.default]
        found = forward, sum(mask[0] for mask in masks), sum(mask[1] for mask in masks)

        def noted(arguments: list[Any]) -> Any:
            if any(found):
                self.executed.append(found)
            return run(arguments)

        noted._boxed_call = True  # type: ignore[attr-defined]  # takes its arguments as one list
        return noted
