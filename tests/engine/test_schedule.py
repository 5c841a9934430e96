"""Learning rates against PyTorch's own schedulers, and milestones that would never fire."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardfast.engine import UsageError
from hardfast.engine.recipes.schedule import ScheduleOptions, learning_rate, momentum

STEPS, EPOCHS = 7, 12


def ours(options: ScheduleOptions) -> list[tuple[float, float]]:
    places = [
        {"epoch": epoch, "step": step, "steps": STEPS, "epochs": EPOCHS}
        for epoch in range(EPOCHS)
        for step in range(STEPS)
    ]
    return [(learning_rate(options, peak=0.2, **place), momentum(options, base=0.9, **place)) for place in places]


def theirs(make: object) -> list[tuple[float, float]]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2, momentum=0.9)
    scheduler = make(optimizer)
    values = []
    for _ in range(STEPS * EPOCHS):
        values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return values


def test_multistep_is_torchs_with_milestones_in_iterations() -> None:
    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [5 * STEPS, 9 * STEPS], gamma=0.1)

    found = ours(ScheduleOptions(kind="multistep", milestones=(5, 9)))
    for mine, wanted in zip(found, theirs(make), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-12)
    assert len({rate for rate, _ in found}) == 3


@pytest.mark.parametrize("cycle_momentum", [False, True])
@pytest.mark.parametrize("peak", [0.5, 0.25])
def test_cyclic_is_torchs(peak: float, cycle_momentum: bool) -> None:
    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        total = STEPS * EPOCHS
        return torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.0, 0.2, step_size_up=peak * total, step_size_down=(1 - peak) * total,
            cycle_momentum=cycle_momentum,
        )  # fmt: skip

    found = ours(ScheduleOptions(kind="cyclic", peak=peak, cycle_momentum=cycle_momentum))
    for mine, wanted in zip(found, theirs(make), strict=True):
        assert mine == pytest.approx(wanted, abs=1e-12)


def test_onecycle_is_torchs() -> None:
    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=STEPS * EPOCHS, cycle_momentum=False
        )

    found = ours(ScheduleOptions(kind="onecycle"))
    for mine, wanted in zip(found, theirs(make), strict=True):
        assert mine == pytest.approx(wanted, abs=1e-12)


def test_linear_goes_through_its_knots() -> None:
    """Wong et al.'s ImageNet schedule, with the values between its knots as numpy interpolates them."""
    knots = ((0.0, 0.0), (1.0, 1.0), (6.0, 0.1), (12.0, 0.01), (15.0, 0.001))
    options = ScheduleOptions(kind="linear", knots=knots)
    for epoch, steps in ((0, 10), (1, 10), (5, 10), (6, 23), (11, 23), (12, 40), (14, 40)):
        for step in range(steps):
            mine = learning_rate(options, peak=0.4, epoch=epoch, step=step, steps=steps, epochs=15)
            wanted = np.interp(epoch + step / steps, [e for e, _ in knots], [0.4 * share for _, share in knots])
            assert mine == pytest.approx(float(wanted), abs=1e-12)
    assert learning_rate(options, peak=0.4, epoch=20, step=0, steps=1, epochs=30) == pytest.approx(0.0004)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (100.5,)}, "whole number"),
        ({"milestones": (True,)}, "whole number"),
        ({"milestones": (5, 5)}, "increase"),
        ({"milestones": (0,)}, "positive"),
        ({"kind": "cyclic", "milestones": (5,)}, "do not apply"),
        ({"kind": "onecycle", "cycle_momentum": True}, "does not apply"),
        ({"knots": ((0.0, 0.0), (1.0, 1.0))}, "do not apply"),
        ({"kind": "linear"}, "schedule.knots"),
        ({"kind": "linear", "knots": ((1.0, 0.0), (2.0, 1.0))}, "from epoch 0"),
        ({"kind": "linear", "knots": ((0.0, 0.0), (0.0, 1.0))}, "increasing"),
        ({"kind": "linear", "knots": ((0.0, 0.0), (1.0, 1.5))}, "shares"),
        ({"peak": 0.0}, "schedule.peak"),
        ({"peak": float("nan")}, "schedule.peak"),
        ({"gamma": 0.0}, "schedule.gamma"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScheduleOptions(**options)
