"""The steps that `bench step` times: ours in every mode and precision, and the baselines, on one batch of images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..engine.errors import UsageError
from ..engine.execution import ExecutionOptions, Mode, Precision
from ..engine.methods import FgsmSdiOptions, MethodOptions, Position, StandardOptions
from ..engine.models import ModelName, ModelOptions, NetShape, build_generator, build_model, channels_last
from ..engine.recipes.recipe import Recipe
from ..engine.run import Run
from ..engine.threat import parse_pixels
from ..kernels import random_key
from ..loaders import Batch, DataOptions, Dataset, Split
from .baselines import Parts, Released, Tuned
from .timing import check_rounds

CHANNELS = 3
SMOOTHING = 0.1
EPSILON = "8/255"
OURS = ("plain", "fgsm-sdi", "fgsm-sdi-bn-eval", "fgsm-sdi-half-generator")
BASELINES = ("released", "released-2022", "tuned-eager", "tuned-compiled")
NAMES = (*OURS, *BASELINES)
DEFAULT_NAMES = ("plain", "fgsm-sdi", *BASELINES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one table is measured on.

    Attributes:
        model: a name that `build_model` knows.
        batch: images in a step.
        image_size: side of an image in pixels.
        k: every k-th step updates the generator.
        generator_width: its hidden channels.
    """

    model: ModelName
    batch: int
    image_size: int
    k: int = 20
    generator_width: int = 64

    @property
    def classes(self) -> int:
        """As many as the data sets of its model have."""
        return 1000 if self.model == "resnet50" else 10


def check_workload(workload: Workload, rounds: int) -> None:
    """Refuses numbers that no step can be timed with.

    Raises:
        UsageError: naming the option.
    """
    for option in ("batch", "image_size", "k", "generator_width"):
        if getattr(workload, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {getattr(workload, option)}")
    check_rounds(rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row: whose step, how it is executed, and in which precision."""

    name: str
    mode: Mode
    precision: Precision

    def __str__(self) -> str:
        return f"{self.name} ({self.mode}, {self.precision})"


@dataclass(slots=True, kw_only=True)
class BuiltStep:
    """A variant ready to be timed.

    Attributes:
        call: one step; number 0 updates the generator, 1 does not.
        kinds: which of the two numbers differ.
        warmup_seconds, capture_seconds: what preparing it took, beyond building the nets.
        run: the engine's own, for our variants.
    """

    call: Callable[[int], None]
    kinds: tuple[int, ...]
    warmup_seconds: float = 0.0
    capture_seconds: float = 0.0
    run: Run | None = field(default=None, repr=False)


def images_of(workload: Workload) -> Split:
    """As many random images as are in a step, uint8 [N, H, W, 3], with labels."""
    draw = torch.Generator().manual_seed(0)
    shape = (workload.batch, workload.image_size, workload.image_size, CHANNELS)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return Split(image, torch.randint(0, workload.classes, (workload.batch,), generator=draw))


def recipe_of(workload: Workload, name: str, options: ExecutionOptions) -> Recipe:
    """The recipe whose step one of our variants is."""
    sdi = FgsmSdiOptions(k=workload.k, generator_width=workload.generator_width)
    if name == "fgsm-sdi-half-generator":
        sdi = replace(sdi, generator_resolution="half")
    method: MethodOptions = StandardOptions() if name == "plain" else sdi
    return Recipe(
        name=name,
        epsilon=EPSILON,
        epochs=1,
        batch_size=workload.batch,
        label_smoothing=SMOOTHING,
        box=False,
        attack_bn="eval" if name == "fgsm-sdi-bn-eval" else "train",
        method=method,
        data=DataOptions(name="synthetic", image_size=workload.image_size),
        model=ModelOptions(name=workload.model),
        execution=options,
    )


def build(variant: Variant, workload: Workload, device: torch.device) -> BuiltStep:
    """A whole step (attack and update) of one variant on a batch of its own, from weights that are alike for all.

    Images lie on the device already, as bytes for our steps and as the floats that they want for the others.
    """
    return _ours(variant, workload, device) if variant.name in OURS else _baseline(variant, workload, device)


def _ours(variant: Variant, workload: Workload, device: torch.device) -> BuiltStep:
    """The engine's own step, as the trainer runs it."""
    images = images_of(workload)
    data = Dataset("synthetic", workload.classes, "made, not read", images, images, images)
    recipe = recipe_of(workload, variant.name, ExecutionOptions(mode=variant.mode, precision=variant.precision))
    run = Run(recipe, data, device)
    refused = run.prepare([Position(0, 0), Position(0, 1)])
    if refused is not None:
        raise RuntimeError(f"{variant}: {refused}")
    moved = images.to(device)
    index, key = torch.arange(workload.batch, device=device), random_key(0, device=device)
    batch = Batch(index, moved.images, moved.labels, key)
    built = BuiltStep(
        call=lambda number: run.step(batch, Position(0, number)),
        kinds=(1,) if variant.name == "plain" else (1, 0),
        run=run,
    )
    if run.prepared is not None:
        built.warmup_seconds, built.capture_seconds = run.prepared.warmup, run.prepared.capture
    return built


def _baseline(variant: Variant, workload: Workload, device: torch.device) -> BuiltStep:
    images = images_of(workload).to(device)
    x = (images.images.permute(0, 3, 1, 2).float() / 255).contiguous()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = NetShape(num_classes=workload.classes, in_channels=CHANNELS)
        net: nn.Module = build_model(ModelOptions(name=workload.model), shape)
        generator = build_generator("released", 2 * CHANNELS, CHANNELS, workload.generator_width)
    net, generator = net.to(device).train(), generator.to(device).eval()
    if variant.name.startswith("released"):
        weight_gradients = variant.name == "released-2022"
        step: Released | Tuned = Released(_parts(net, generator, workload), weight_gradients=weight_gradients)
    else:
        x = x.contiguous(memory_format=torch.channels_last)
        parts = _parts(channels_last(net), channels_last(generator), workload, fused=device.type == "cuda" or None)
        if variant.mode == "compiled":
            parts.net.compile(dynamic=False)
            parts.generator.compile(dynamic=False)
        step = Tuned(parts, lambda: _autocast(device, variant.precision))
    return BuiltStep(call=lambda number: step(x, images.labels, number), kinds=(1, 0))


def _parts(net: nn.Module, generator: nn.Module, workload: Workload, *, fused: bool | None = None) -> Parts:
    return Parts(
        net=net,
        generator=generator,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused),
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, weight_decay=5e-4),
        epsilon=float(parse_pixels(EPSILON, "epsilon")),
        smoothing=SMOOTHING,
        k=workload.k,
    )


def _autocast(device: torch.device, precision: Precision) -> Any:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
