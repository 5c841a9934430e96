"""NaN and infinities at every place where they can enter a step: seen in that step, which then changes nothing.

A fault is planted by torch's own hooks on the nets of a real run, or written into a tensor of it. All that the run
would save is compared bit for bit, and the next step must be that of a run which never saw the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine import Recipe
from hardfast.engine.execution import Execution, ExecutionOptions, Precision
from hardfast.engine.methods import METHODS, FreeAtOptions, Position, method_options
from hardfast.engine.nonfinite import POLL_STEPS, Saved, StepWatch
from hardfast.engine.optimizers import LossScaler, make_adam, set_learning_rate
from hardfast.engine.run import Run
from hardfast.loaders import Batch, open_dataset

from ..night import figure, tries

CPU = torch.device("cpu")
VALUES = [float("nan"), float("inf"), -float("inf")]
AREA = "NaN / Inf at 10 places x 2 dtypes x 3 values"


class Fault:
    """Puts a value that is not finite into tensors of a run.

    Attributes:
        fired: how often it did.
    """

    def __init__(self, value: float) -> None:
        self.value, self.fired = value, 0

    def into(self, tensor: Tensor) -> Tensor:
        """A copy with the value in one element."""
        self.fired += 1
        changed = tensor.detach().clone()
        changed[tuple(size // 2 for size in changed.shape)] = self.value
        return changed

    @contextmanager
    def written(self, tensor: Tensor) -> Iterator[None]:
        """In one element of the tensor itself, until the end."""
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(self.into(tensor))
        try:
            yield
        finally:
            with torch.no_grad():
                tensor.copy_(before)


Plant = Callable[[Run, Batch, Fault], Any]  # -> a context in which the fault lies in the run


def parameter(name: str) -> Plant:
    """A weight of the classifier."""
    return lambda run, batch, fault: fault.written(run.net.get_parameter(name))


def buffer(name: str) -> Plant:
    """A buffer of the classifier."""
    return lambda run, batch, fault: fault.written(run.net.get_buffer(name))


def stored(name: str) -> Plant:
    """What the method keeps: of the images in the batch, or of the places in it."""

    @contextmanager
    def plant(run: Run, batch: Batch, fault: Fault) -> Iterator[None]:
        tensor = run.method.state()[name]
        with fault.written(tensor[batch.index[0]] if len(tensor) > len(batch.index) else tensor[0]):
            yield

    return plant


def hooked(hook: Callable[[Run, Fault], Any]) -> Plant:
    """Whatever a hook of torch changes."""

    @contextmanager
    def plant(run: Run, batch: Batch, fault: Fault) -> Iterator[None]:
        handle = hook(run, fault)
        try:
            yield
        finally:
            handle.remove()

    return plant


def input_gradient(number: int, *, descent: bool = False) -> Plant:
    """The gradient that the number-th pass through the attacks' net, or the descended one, gives its image."""

    def hook(run: Run, fault: Fault) -> Any:
        calls = count()

        def watched(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if next(calls) == number:
                inputs[0].register_hook(fault.into)

        return (run.net if descent else run.classifier.twin.net).register_forward_pre_hook(watched)

    return hooked(hook)


def weight_gradient(name: str, *, of: str = "", number: int = 0) -> Plant:
    """The gradient of a weight in the number-th backward pass, of the classifier or of one of the method's nets."""

    def hook(run: Run, fault: Fault) -> Any:
        calls = count()
        net = run.method.nets()[of] if of else run.net
        return net.get_parameter(name).register_hook(lambda g: fault.into(g) if next(calls) == number else None)

    return hooked(hook)


def output_of(net: Callable[[Run], nn.Module]) -> Plant:
    """One number that a net gives out."""
    return hooked(lambda run, fault: net(run).register_forward_hook(lambda m, i, out: out + fault.into(out * 0)))


@contextmanager
def logit_of_the_label(run: Run, batch: Batch, fault: Fault) -> Iterator[None]:
    """Elsewhere -Inf would be harmless: a class that is ruled out."""

    def changed(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
        if inputs[0].shape != batch.x.shape:
            return None
        fault.fired += 1
        return logits.index_put((torch.tensor(0), batch.label[0]), torch.tensor(fault.value, dtype=logits.dtype))

    handle = run.net.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def loss_alone(run: Run, batch: Batch, fault: Fault) -> Iterator[None]:
    """The loss and none of its gradients: a constant is added."""
    name = "_training_loss_and_logits" if run.recipe.method.name == "fgsm-mep" else "_training_loss"
    healthy = getattr(run.classifier, name)

    def changed(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = healthy(x, labels)
        fault.fired += 1
        return loss + fault.value, logits

    setattr(run.classifier, name, changed)
    try:
        yield
    finally:
        setattr(run.classifier, name, healthy)


@dataclass(frozen=True)
class Place:
    """Where a fault is planted: in which method, in which step of an epoch, with which mode of BatchNorm in attacks."""

    what: str
    plant: Plant
    method: str
    step: int = 1  # FGSM-SDI updates its generator in step 0
    attack_bn: str = "train"
    scaled: bool = False  # in fp16, an overflow of the loss scale unless that is at its floor
    passing: bool = False  # a sign makes 1 of an infinity there, while NaN would be seen further down as well


PLACES = [
    Place("classifier weight", parameter("conv1.weight"), "fgsm-sdi", 0),
    Place("classifier weight", parameter("linear.bias"), "fgsm-rs", attack_bn="eval"),
    Place("running variance", buffer("bn1.running_var"), "fgsm-rs"),
    Place("running variance", buffer("bn1.running_mean"), "fgsm-sdi", attack_bn="eval"),
    Place("BatchNorm's scale", parameter("bn1.weight"), "fgsm-2step"),
    Place("BatchNorm's scale", parameter("layer2.0.bn1.weight"), "fgsm-mep"),
    Place("clean input gradient", input_gradient(0), "fgsm-sdi", 0, passing=True),
    Place("clean input gradient", input_gradient(0), "fgsm-ga", passing=True),
    Place("gradient at the start", input_gradient(1), "fgsm-sdi", passing=True),
    Place("gradient at the start", input_gradient(0), "fgsm-ckpt", attack_bn="eval", passing=True),
    Place("gradient at the start", input_gradient(1), "fgsm-2step", passing=True),
    Place("gradient at the start", input_gradient(1), "pgd2-at", passing=True),
    Place("generator's proposal", output_of(lambda run: run.method.twin.net), "fgsm-sdi", 0),
    Place("generator's proposal", output_of(lambda run: run.method.generator), "fgsm-sdi", 0),
    Place("generator's gradient", weight_gradient("conv1.weight", of="generator"), "fgsm-sdi", 0, scaled=True),
    Place("generator's gradient", input_gradient(1), "fgsm-sdi", 0, passing=True),
    Place("logits", logit_of_the_label, "standard"),
    Place("logits", logit_of_the_label, "n-fgsm", attack_bn="eval"),
    Place("loss", loss_alone, "fgsm-sdi", 0),
    Place("loss", loss_alone, "fgsm-mep"),
    Place("weight gradient", weight_gradient("layer1.0.conv1.weight"), "pgd2-at", scaled=True),
    Place("weight gradient", weight_gradient("linear.weight", number=2), "free-at", scaled=True),
    Place("stored perturbation", stored("delta"), "free-at"),
    Place("stored perturbation", stored("momentum"), "fgsm-mep"),
]
EXTRA = [  # further ones of the same kind, by night
    Place("gradient at the start", input_gradient(2, descent=True), "free-at", scaled=True),
    Place("stored perturbation", stored("delta"), "fgsm-mep"),
]


def cases() -> list[tuple[Place, Precision, float]]:
    """By day each place once, with every value and two precisions in turn; by night all of them."""
    night: list[Precision] = ["fp32", "bf16", "fp16"]
    by_night = [(place, p, value) for place in (*PLACES, *EXTRA) for p in night for value in VALUES]
    by_day = [
        (place, night[i // 3 % 2], VALUES[1 + i % 2] if place.passing else VALUES[i % 3])
        for i, place in enumerate(PLACES)
    ]
    by_day.append((next(place for place in PLACES if place.what == "logits"), "fp16", VALUES[0]))  # no mere overflow
    return by_night if tries(0, 1) else by_day


def run_of(recipe: Recipe, method: str, *, precision: Precision = "fp32", **options: Any) -> Run:
    """A run of small steps, in the middle of which it stands: no momentum is zero any more."""
    chosen = recipe.method if method == recipe.method.name else method_options(method)
    if isinstance(chosen, FreeAtOptions):
        chosen = replace(chosen, replays=4)
    execution = ExecutionOptions(precision=precision)
    recipe = replace(recipe, method=chosen, batch_size=16, weight_average=0.9, execution=execution, **options)
    run = Run(recipe, open_dataset(recipe.data), CPU)
    scale(run, 2.0**8)
    run.method.begin_epoch(0, recipe.seed)
    set_learning_rate(run.optimizer, 0.05)
    for step, batch in enumerate(batches(run, 2)):
        run.step(batch, Position(0, step))
    assert run.watch.read() == [False, False]
    return run


def batches(run: Run, number: int, *, start: int = 0) -> list[Batch]:
    return list(run.loader.epoch(0, start=start, stop=start + number))


def scale(run: Run, value: float) -> None:
    run.classifier.scaler.restore({"scale": torch.tensor(value), "healthy_steps": torch.tensor(0.0)})


def bits(run: Run) -> dict[str, Tensor]:
    """All that training changes, as bytes: NaN is equal to itself there."""
    assert run.average is not None
    average = {f"average/{name}": value for name, value in run.average.net.state_dict().items()}
    tensors = {**run.tensors(), **run.net.state_dict(), **average}
    return {name: t.detach().clone().reshape(-1).view(torch.uint8) for name, t in tensors.items()}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize(
    ("place", "precision", "value"),
    [pytest.param(*case, id=f"{case[0].what}, {case[0].method}, {case[1]}, {case[2]}") for case in cases()],
)
def test_a_bad_step_is_flagged_and_changes_nothing(
    place: Place, precision: Precision, value: float, quick_recipe: Recipe
) -> None:
    run = run_of(quick_recipe, place.method, precision=precision, attack_bn=place.attack_bn)
    if place.scaled:
        scale(run, LossScaler.FLOOR)
    (batch,) = batches(run, 1, start=2)
    position, before = Position(0, place.step), bits(run)
    with run.rewind():  # the control: this very step, healthy
        run.step(batch, position)
        assert run.watch.read() == [False]
        healthy = bits(run)
    assert {"conv1.weight", "bn1.running_mean", "average/conv1.weight"} <= {*different(before, healthy)}

    fault = Fault(value)
    with run.execution.numerics(), place.plant(run, batch, fault):
        planted = bits(run)
        run.step(batch, position)
        changed = different(planted, bits(run))
        flags = run.watch.read()
    assert fault.fired == 1
    held = flags == [True] and not changed
    figure(AREA, tried=1, held=held, fired=fault.fired, note="11 places; in fp32, bf16 and fp16")
    assert flags == [True]
    assert changed == []
    assert different(before, bits(run)) == []
    run.step(batch, position)
    assert run.watch.read() == [False]
    assert different(healthy, bits(run)) == []


@pytest.mark.slow
def test_compiled_passes_report_too(quick_recipe: Recipe) -> None:
    recipe = replace(quick_recipe, batch_size=16, weight_average=0.9, method=method_options("fgsm-rs"))
    run = Run(recipe, open_dataset(recipe.data), CPU, execution=Execution(compile=True, backend="aot_eager"))
    set_learning_rate(run.optimizer, 0.05)
    first, second = batches(run, 2)
    run.step(first, Position(0, 0))
    fault = Fault(float("nan"))
    with fault.written(run.net.conv1.weight):
        before = bits(run)
        run.step(second, Position(0, 1))
        assert different(before, bits(run)) == []
    run.step(second, Position(0, 1))
    assert run.watch.read() == [False, True, False]
    assert "conv1.weight" in different(before, bits(run))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pgd-at"])  # pgd2-at is the same code
def test_healthy_steps_are_those_of_a_method_without_a_watch(name: str, quick_recipe: Recipe) -> None:
    """What is saved and put back leaves no trace, nor does looking."""
    watched, plain = run_of(quick_recipe, name), run_of(quick_recipe, name)
    assert different(bits(watched), bits(plain)) == []
    for step, batch in enumerate(batches(watched, 3, start=2), start=4):  # the generator moves in step 5
        watched.step(batch, Position(0, step))
        plain.classifier.begin_step()
        plain.method.step(batch, Position(0, step), plain.step.learner)
        assert different(bits(watched), bits(plain)) == []
    assert watched.watch.read() == [False] * 3


class Waits(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a number from it, and shapes that depend on one."""

    WAITS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.WAITS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pgd-at"])
def test_no_step_waits_for_the_device(name: str, quick_recipe: Recipe) -> None:
    """As far as a CPU can show it, with loss scaling: a CUDA graph could not hold a step that waits."""
    run = run_of(quick_recipe, name, precision="fp16")
    run.average = run.step.learner.average = None  # a fused optimiser on a CPU reads a rate that is a tensor
    loaded = batches(run, 2)
    with Waits():
        for step, batch in enumerate(loaded):
            run.step(batch, Position(0, step))
        with pytest.raises(AssertionError, match="waits"):
            run.watch.flag.item()


def step_with(watch: StepWatch, value: float) -> None:
    watch.begin()
    watch.observe(torch.ones(3), torch.tensor([0.0, value], dtype=torch.float64))
    watch.observe(torch.ones(2))
    watch.end()


def test_flags_are_read_in_order_over_many_polls() -> None:
    watch = StepWatch(CPU)
    wanted = [(step * step) % 7 in (1, 2) for step in range(3 * POLL_STEPS + 7)]
    found: list[bool] = []
    for step, bad in enumerate(wanted):
        step_with(watch, VALUES[step % 3] if bad else 1e38)
        assert watch.flag.dtype == torch.int32
        assert watch.flag.tolist() == [bad]
        if step % POLL_STEPS == POLL_STEPS - 1:
            found += watch.read()
            assert watch.read() == []
    assert found + watch.read() == wanted
    assert True in wanted


def test_flags_that_nobody_reads_are_not_read_wrong() -> None:
    watch = StepWatch(CPU)
    for _ in range(200):
        step_with(watch, float("nan"))
    with pytest.raises(RuntimeError, match="200 steps without a reading"):
        watch.read()
    step_with(watch, 0.0)
    assert watch.read() == [False]


def test_a_rewind_takes_the_watch_back(quick_recipe: Recipe) -> None:
    """A warm-up for a capture leaves no flag behind."""
    run = run_of(quick_recipe, "standard")
    first, second = batches(run, 2)
    run.step(first, Position(0, 0))
    with run.rewind(), Fault(float("nan")).written(run.net.conv1.weight):
        run.step(second, Position(0, 1))
        assert run.watch.flag.item() == 1
    assert run.watch.flag.item() == 0
    assert run.watch.read() == [False]


@pytest.mark.parametrize("left_out", [0.0, 1.0])
def test_what_is_put_back_is_exact(left_out: float) -> None:
    """NaN with a payload, both zeros, the ends of integers, every size of element, and any layout."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**63), 2**63 - 1, (4, 2, 3, 3), generator=draw)
    edges = torch.tensor([-(2**63), 2**63 - 1, 0, -1, 1])
    tensors = [
        words.view(torch.float32).to(memory_format=torch.channels_last),
        torch.tensor([float("nan"), -float("nan"), 0.0, -0.0, float("inf"), -float("inf")]),
        words.view(torch.float64),
        words.view(torch.bfloat16),
        words.view(torch.float16)[..., ::2],
        words.view(torch.complex64),
        torch.tensor([1j, complex("nan+infj")], dtype=torch.complex128),
        edges,
        edges.view(torch.int32).clone(),
        torch.tensor([True, False]),
        torch.tensor(5),
        nn.Parameter(torch.tensor(-0.0)),
    ]
    saved = Saved(tensors)
    for _ in range(2):
        before = [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]
        saved.take()
        with torch.no_grad():
            for tensor in tensors:
                most = 2 if tensor.dtype == torch.bool else 256
                drawn = torch.randint(most, (tensor.numel() * tensor.element_size(),), generator=draw).to(torch.uint8)
                tensor.copy_(drawn.view(tensor.dtype).reshape(tensor.shape))
        moved = [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]
        assert sum(not torch.equal(*pair) for pair in zip(before, moved, strict=True)) >= 10
        saved.put_back(torch.tensor(left_out))
        after = [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]
        assert all(map(torch.equal, after, before if left_out else moved))


def test_an_adam_whose_state_exists_steps_as_torchs_own() -> None:
    torch.manual_seed(0)
    net, other = (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2))
    other.load_state_dict(net.state_dict())
    ours = make_adam(net, Execution(), lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    assert {name: value.sum() for name, value in ours.state[net.weight].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), 0
    )
    for _ in range(3):
        for one, optimizer in ((net, ours), (other, theirs)):
            optimizer.zero_grad()
            one(torch.ones(1, 3, 5, 5)).square().sum().backward()
            optimizer.step()
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(ours.state[net.weight]["step"], theirs.state[other.weight]["step"])
