"""Learning rates against PyTorch's own schedulers, and milestones that would never fire."""

from __future__ import annotations

import pytest
import torch

from hardfast.engine import UsageError
from hardfast.engine.schedule import ScheduleOptions, learning_rate, momentum

STEPS, EPOCHS = 7, 12


def ours(options: ScheduleOptions) -> list[tuple[float, float]]:
    where = {"steps_per_epoch": STEPS, "epochs": EPOCHS}
    return [
        (learning_rate(options, peak=0.2, step=t, **where), momentum(options, base=0.9, step=t, **where))
        for t in range(STEPS * EPOCHS)
    ]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (100.5,)}, "whole epochs"),
        ({"milestones": (True,)}, "whole epochs"),
        ({"milestones": (5, 5)}, "increase"),
        ({"milestones": (0,)}, "positive"),
        ({"kind": "cyclic", "milestones": (5,)}, "do not apply"),
        ({"peak": 0.0}, "schedule.peak"),
        ({"peak": float("nan")}, "schedule.peak"),
        ({"gamma": 0.0}, "schedule.gamma"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScheduleOptions(**options)
