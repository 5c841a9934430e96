"""What a step executes: convolution backward calls counted with their output masks, in eager and in compiled mode."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from hardfast.engine.classifier import AttackBN, Classifier
from hardfast.engine.execution import Execution
from hardfast.engine.gradients import attack_loss, input_gradient
from hardfast.engine.methods import (
    METHODS,
    Fgsm2StepOptions,
    FgsmCkptOptions,
    FgsmGaOptions,
    FgsmMepOptions,
    FgsmRsOptions,
    FgsmSdiOptions,
    FreeAtOptions,
    MethodOptions,
    NFgsmOptions,
    Pgd2AtOptions,
    Pgd4AtOptions,
    PgdAtOptions,
    Position,
    StandardOptions,
)
from hardfast.engine.models import ModelName, ModelOptions, NetShape, ResNet, build_model, channels_last
from hardfast.engine.step import TrainingStep

from .counting import ConvolutionCounter, GraphCounter
from .steps import drawn_batch, training_step

CONVOLUTIONS: dict[ModelName, int] = {"resnet8": 9, "resnet18": 20, "preact_resnet18": 20, "resnet50": 53}
SIDES: dict[ModelName, int] = {"resnet8": 16, "resnet18": 16, "preact_resnet18": 16, "resnet50": 64}
GENERATOR = 4


def small(model: ModelName) -> nn.Module:
    torch.manual_seed(0)
    return channels_last(build_model(ModelOptions(name=model), NetShape(num_classes=10, in_channels=3)))


def count(
    options: MethodOptions, *, step: int, model: ModelName = "resnet8", attack_bn: AttackBN = "train"
) -> Counter[str]:
    """Convolutions of one whole step in eager mode."""
    trained = training_step(options, small(model), attack_bn=attack_bn)
    generator_weights = {p.data_ptr() for g in trained.method.nets().values() for p in g.parameters()}
    with ConvolutionCounter(generator_weights) as counter:
        trained(drawn_batch(side=SIDES[model]), Position(0, step))
    return counter.calls


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_sdi_step_is_2_2_3_and_one_generator_forward(model: ModelName, attack_bn: AttackBN) -> None:
    n = CONVOLUTIONS[model]
    calls = count(FgsmSdiOptions(k=20), step=1, model=model, attack_bn=attack_bn)
    # The stem's input is x_adv, which needs no gradient in the descent: n - 1 input gradients there.
    assert calls == {
        "net forward": 3 * n,
        "net input": 2 * n + n - 1,
        "net weight": n,
        "generator forward": GENERATOR,
    }


def test_sdi_kth_step_adds_2_2_and_one_generator_update() -> None:
    n = CONVOLUTIONS["resnet8"]
    calls = count(FgsmSdiOptions(k=20), step=20)
    assert calls == {
        "net forward": 5 * n,
        "net input": 4 * n + n - 1,
        "net weight": n,  # none for the generator's ascent, which passes through the net
        "generator forward": 2 * GENERATOR,
        "generator input": GENERATOR - 1,  # its own input needs none
        "generator weight": GENERATOR,
    }


# (forwards, input gradients, weight gradients) of a step, in passes through the whole net: their sum is its units.
UNITS: list[tuple[MethodOptions, tuple[int, int, int], int]] = [
    (StandardOptions(), (1, 1, 1), 3),
    (FgsmRsOptions(), (2, 2, 1), 5),
    (NFgsmOptions(), (2, 2, 1), 5),
    (Pgd2AtOptions(), (3, 3, 1), 7),
    (Fgsm2StepOptions(), (3, 3, 1), 7),
    (Pgd4AtOptions(), (5, 5, 1), 11),
    (PgdAtOptions(), (11, 11, 1), 23),
    (FgsmCkptOptions(), (4, 2, 1), 5 + 2),  # a forward for each checkpoint but the last
    (FgsmCkptOptions(checkpoints=5), (6, 2, 1), 5 + 4),
    (FreeAtOptions(replays=1), (1, 1, 1), 3),
    (FreeAtOptions(replays=4), (4, 4, 4), 3 * 4),
    # The start's one forward is differentiated in the image, and then in the weights beside x_adv's.
    (FgsmMepOptions(), (2, 3, 2), 7),
    # 2 + 3 + 2, and four for each input gradient that is differentiated in the weights: for every convolution one that
    # carries its derivative on, one for the weight, and the two of its own backward. "both" is 3 x FGSM-RS.
    (FgsmGaOptions(), (5, 4, 2), 7 + 4),
    (FgsmGaOptions(through="both"), (7, 5, 3), 7 + 2 * 4),
]


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize(("options", "passes", "units"), UNITS)
def test_units_of_the_other_methods(
    options: MethodOptions, passes: tuple[int, int, int], units: int, attack_bn: AttackBN
) -> None:
    n = CONVOLUTIONS["resnet8"]
    forwards, inputs, weights = passes
    assert forwards + inputs + weights == units
    # Where x_adv needs no gradient, the stem's convolution computes none: only Free-AT's perturbation wants it.
    spared = 0 if isinstance(options, FreeAtOptions) else 1
    assert count(options, step=0, attack_bn=attack_bn) == {
        "net forward": forwards * n,
        "net input": inputs * n - spared,
        "net weight": weights * n,
    }


def test_every_method_has_its_units_counted() -> None:
    assert {options.name for options, _, _ in UNITS} | {"fgsm-sdi"} == set(METHODS)


def compiled_passes(n: int) -> dict[str, list[tuple[int, int, int]]]:
    """(forward, gradients of inputs, gradients of weights) of the convolutions in each compiled graph of a pass."""
    g = GENERATOR
    return {
        "input gradient": [(n, 0, 0), (0, n, 0)],
        "generator": [(g, 0, 0)],
        "descent": [(n, 0, 0), (0, n - 1, n)],
        # The generator's forward, an input gradient, the loss at x_adv, and back through both nets.
        "update": [(g, 0, 0), (n, 0, 0), (0, n, 0), (n, 0, 0), (0, n, 0), (0, g - 1, g)],
    }


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_compiled_steps_execute_2_2_3_as_traced(model: ModelName, attack_bn: AttackBN) -> None:
    """Compiled passes are fixed when they are traced: what AOTAutograd leaves in them is what every step computes."""
    torch.compiler.reset()
    counter = GraphCounter()
    execution = Execution(compile=True, backend=counter.traced())
    step = training_step(
        FgsmSdiOptions(k=20, generator_width=8), small(model), attack_bn=attack_bn, execution=execution
    )
    passes = compiled_passes(CONVOLUTIONS[model])
    for number in (1, 20):
        counter.executed.clear()
        step(drawn_batch(side=SIDES[model]), Position(0, number))
        update = passes["update"] if number == 20 else []
        gradient, descent = passes["input gradient"], passes["descent"]
        assert counter.executed == [*gradient, *update, *passes["generator"], *gradient, *descent]


ATTACK, DESCENT = [(9, 0, 0), (0, 9, 0)], [(9, 0, 0), (0, 8, 9)]  # of resnet8
FORWARD, REPLAY = [(9, 0, 0)], [(9, 0, 0), (0, 9, 9)]


@pytest.mark.parametrize(
    ("options", "executed"),
    [
        (StandardOptions(), DESCENT),
        (FgsmRsOptions(), ATTACK + DESCENT),
        (NFgsmOptions(), ATTACK + DESCENT),
        (Pgd2AtOptions(), 2 * ATTACK + DESCENT),
        (Pgd4AtOptions(), 4 * ATTACK + DESCENT),
        (PgdAtOptions(), 10 * ATTACK + DESCENT),
        (Fgsm2StepOptions(), 2 * ATTACK + DESCENT),
        (FgsmCkptOptions(), ATTACK + 2 * FORWARD + DESCENT),
        (FreeAtOptions(replays=3), 3 * REPLAY),
        # What these differentiate twice stays eager; the rest is compiled.
        (FgsmGaOptions(), ATTACK + DESCENT),
        (FgsmGaOptions(through="both"), DESCENT),
        (FgsmMepOptions(), DESCENT),
    ],
)
def test_compiled_steps_of_the_other_methods_execute_no_more(
    options: MethodOptions, executed: list[tuple[int, int, int]]
) -> None:
    torch.compiler.reset()
    counter = GraphCounter()
    execution = Execution(compile=True, backend=counter.traced())
    step = training_step(options, small("resnet8"), execution=execution)
    for number in range(2):
        counter.executed.clear()
        step(drawn_batch(), Position(0, number))
        assert counter.executed == executed
    eager = step.method.uncompiled is not None
    assert eager == isinstance(options, FgsmGaOptions | FgsmMepOptions)


@pytest.mark.parametrize(
    ("options", "dtype", "bound"),
    [
        (FgsmSdiOptions(k=3, generator_width=16), torch.float64, 1e-9),
        pytest.param(FgsmSdiOptions(k=3, generator_width=16), torch.float32, 4e-2, marks=pytest.mark.slow),
        pytest.param(FgsmRsOptions(), torch.float32, 4e-2, marks=pytest.mark.slow),
    ],
)
def test_inductor_executes_the_same_compiles_nothing_later_and_agrees_with_eager(
    options: MethodOptions, dtype: torch.dtype, bound: float
) -> None:
    """50 steps after two to warm up. `bound` is the largest relative difference of a loss, and of the weights' norm.

    In float32 a sum in another order turns a sign here and there, and from then on the two train on other images; in
    float64 they stay together for all the steps. No stage is narrower than 16 channels: with 4 and 8 Inductor's float32
    code for a CPU writes beyond its memory (torch 2.13; LOG.md).
    """
    torch.compiler.reset()
    counter = GraphCounter()
    n, k = 6, 3

    def step_of(execution: Execution) -> TrainingStep:
        torch.manual_seed(0)
        net = channels_last(ResNet((16, 32), (1, 1), num_classes=10)).to(dtype)
        return training_step(options, net, dtype=dtype, lr=0.02, weight_decay=5e-4, execution=execution)

    compiled, eager = step_of(Execution(compile=True, backend=counter.inductor())), step_of(Execution())
    batches = [drawn_batch(16, 8, seed=seed) for seed in range(4)]
    graphs = 0
    for number in range(52):
        if number == 2:
            graphs = counter.graphs
            counter.executed.clear()
        for step in (compiled, eager):
            step.learner.tally.clear()
            step(batches[number % 4], Position(0, number))
        allowed = bound if number > 2 else min(bound, 2e-3)
        assert compiled.learner.tally.read()[0] == pytest.approx(eager.learner.tally.read()[0], rel=allowed)
    assert counter.graphs == graphs
    passes = compiled_passes(n)
    updates = sum(number % k == 0 for number in range(2, 52)) if isinstance(options, FgsmSdiOptions) else 0
    attacks = 100 if isinstance(options, FgsmSdiOptions) else 50
    wanted = Counter(passes["descent"] * 50 + passes["input gradient"] * attacks)
    if isinstance(options, FgsmSdiOptions):
        wanted += Counter(passes["generator"] * 50 + passes["update"] * updates)
    assert Counter(counter.executed) == wanted
    ours, theirs = (
        torch.cat([p.flatten() for p in one.learner.classifier.net.parameters()]) for one in (compiled, eager)
    )
    assert (ours - theirs).norm() <= bound * theirs.norm()


def test_without_the_twin_a_compiled_attack_would_compute_weight_gradients() -> None:
    """The trap that the twin is there for, and proof that the counter sees it."""
    torch.compiler.reset()
    counter, net, batch = GraphCounter(), small("resnet8"), drawn_batch()
    loss_at = torch.compile(attack_loss(net), fullgraph=True, dynamic=False, backend=counter.traced())
    input_gradient(loss_at, batch.x.float() / 255, batch.label)
    assert counter.executed == [(9, 0, 0), (0, 9, 9)]
    counter.executed.clear()
    execution = Execution(compile=True, backend=counter.traced())
    Classifier(net, execution=execution).input_gradient(batch.x.float() / 255, batch.label)
    assert counter.executed == [(9, 0, 0), (0, 9, 0)]
