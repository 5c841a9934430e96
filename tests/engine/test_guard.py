"""The rules of both guards, on sequences made up for them: no training here."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from hardfast.engine import strict_json
from hardfast.engine.errors import CheckpointError
from hardfast.engine.guard import (
    FEWEST,
    IN_A_ROW,
    IN_WINDOW,
    MOST,
    PROBE_UNITS,
    SHARE,
    STEP_UNITS,
    WINDOW,
    CollapseHistory,
    NonFiniteHistory,
    Place,
    Signs,
    training_seed,
    trip_wires,
)

STEPS = 100  # of an epoch

Flags = list[bool]


def told(flags: Flags, history: NonFiniteHistory | None = None, *, polls: list[int]) -> list[tuple[str, Place, int]]:
    """What is answered when the flags of one epoch are read in parts that end at `polls`; up to the first answer."""
    now = history or NonFiniteHistory()
    for start, end in pairwise([0, *polls, len(flags)]):
        now, answer, place = now.after(flags[start:end], at=Place(3, end), total=3 * STEPS + end)
        if answer != "go on":
            return [(answer, place, now.steps)]
    return []


def test_three_in_a_row_go_back_to_before_the_first() -> None:
    assert IN_A_ROW == 3
    assert told([False, True, True, False, True, True, False], polls=[]) == []
    assert told([False, True, True, True, False], polls=[]) == [("go back", Place(3, 1), 3)]


@settings(max_examples=300)
@given(st.lists(st.booleans(), max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_when_the_flags_are_read_decides_nothing(flags: Flags, polls: list[int]) -> None:
    """A save or a stop reads them earlier: what is done must not depend on that."""
    ends = sorted({min(poll, len(flags)) for poll in polls})
    assert told(flags, polls=ends) == told(flags, polls=[])


@settings(max_examples=300)
@given(st.lists(st.booleans(), max_size=60))
def test_it_answers_at_the_first_row_or_the_tenth_flag_and_not_before(flags: Flags) -> None:
    row = next((i for i in range(len(flags) - 2) if all(flags[i : i + 3])), None)
    bad = [i for i, flag in enumerate(flags) if flag]
    tenth = bad[IN_WINDOW - 1] if len(bad) >= IN_WINDOW else None
    answers = told(flags, polls=[])
    if tenth is not None and (row is None or tenth <= row + 2):
        assert answers == [("stop", Place(3, tenth), IN_WINDOW)]
    elif row is not None:
        assert answers == [("go back", Place(3, row), len([i for i in bad if i <= row + 2]))]
    else:
        assert answers == []


def test_going_back_to_the_same_place_twice_ends_the_run_and_to_another_does_not() -> None:
    bad = [False, True, True, True]
    once, answer, place = NonFiniteHistory().after(bad, at=Place(3, 4), total=304)
    assert (answer, place, once.row) == ("go back", Place(3, 1), 0)
    assert once.after([*bad[1:]], at=Place(3, 4), total=304)[1:] == ("stop", Place(3, 1))
    assert once.after([*bad[1:]], at=Place(3, 5), total=305)[1:] == ("go back", Place(3, 2))
    assert once.after([*bad[1:]], at=Place(4, 4), total=404)[1:] == ("go back", Place(4, 1))


def test_ten_in_a_thousand_end_the_run_and_ten_in_more_do_not() -> None:
    def spread(distance: int) -> tuple[str, int]:
        history, answer = NonFiniteHistory(), "go on"
        for number in range(IN_WINDOW):
            at = number * distance
            history, answer, _ = history.after([True], at=Place(0, at + 1), total=at + 1)
            history, _, _ = history.after([False], at=Place(0, at + 2), total=at + 2)
        return answer, len(history.recent)

    assert (WINDOW, IN_WINDOW) == (1000, 10)
    assert spread(111)[0] == "stop"  # the tenth 999 steps after the first
    assert spread(112) == ("go on", IN_WINDOW - 1)  # 1,008 steps after: the first is forgotten


def test_steps_that_are_given_up_count_no_more() -> None:
    seen = NonFiniteHistory(steps=5, row=2, recent=(7, 9, 20), answered=(Place(0, 9),))
    assert seen.put_back(NonFiniteHistory(row=1), total=9) == replace(seen, row=1, recent=(7,))


def test_a_row_goes_on_from_one_epoch_to_the_next() -> None:
    history, answer, _ = NonFiniteHistory().after([True], at=Place(3, STEPS), total=4 * STEPS)
    assert answer == "go on"
    history, answer, place = history.after([True, True], at=Place(4, 2), total=4 * STEPS + 2)
    assert (answer, place) == ("go back", Place(4, 0))


def signs(pgd: float, *, fgsm: float | None = None, highest: float | None = 60.0, train: float = 50.0) -> Signs:
    return Signs(pgd=pgd, fgsm=fgsm, highest=highest, train=train, train_before=50.0)


@pytest.mark.parametrize(
    ("probe", "suspicious", "alarm"),
    [
        (signs(55), False, False),
        (signs(40.1), False, False),
        (signs(40), True, False),  # 20 points under its highest: one sign of three
        (signs(40, fgsm=70), True, False),  # 30 points between FGSM and PGD are not over 30
        (signs(40, fgsm=70.1), True, True),
        (signs(55, train=65), True, False),  # 15 points up in one probe
        (signs(55, train=64.9), False, False),
        (signs(55, fgsm=90, train=65), True, True),
        (signs(40, train=65), True, True),
        (signs(55, fgsm=90), False, False),  # FGSM alone decides nothing, so it is not even measured
        (signs(4.9), True, True),  # no robustness left
        (signs(4.9, highest=9.9), False, False),  # there never was any
        (signs(5, highest=24), False, False),
        (signs(0, highest=None), False, False),  # the first probe
    ],
)
def test_the_signs_of_catastrophic_overfitting(probe: Signs, suspicious: bool, alarm: bool) -> None:
    assert (probe.suspicious, probe.alarm) == (suspicious, alarm)


@pytest.mark.parametrize(
    ("probe", "healthy"),
    [
        (signs(51), True),
        (signs(50), False),  # half way to an alarm: no place to go back to
        (signs(70), True),
        (signs(0, highest=None), True),
        (signs(60, train=65), True),  # a jump alone is learning
        (signs(60, fgsm=91, train=65), False),
        (signs(4, highest=10), False),
    ],
)
def test_where_a_run_may_go_back_to(probe: Signs, healthy: bool) -> None:
    assert probe.healthy is healthy


@settings(max_examples=500)
@given(*[st.floats(0, 100) for _ in range(5)])
def test_an_alarm_is_always_suspicious_before_fgsm_is_measured(
    pgd: float, fgsm: float, highest: float, train: float, before: float
) -> None:
    """Else a run that overfits would be looked at and let go."""
    whole = Signs(pgd=pgd, fgsm=fgsm, highest=highest, train=train, train_before=before)
    if whole.alarm:
        assert whole.suspicious
        assert Signs(pgd=pgd, fgsm=None, highest=highest, train=train, train_before=before).suspicious


def test_a_history_keeps_the_highest_of_its_kind_and_the_newest_training_accuracy() -> None:
    history = CollapseHistory().probed(30, 20, wire=False, right=0, images=0)
    history = history.probed(80, 25, wire=True, right=12, images=64).probed(20, None, wire=False, right=0, images=0)
    assert (history.highest, history.highest_of_wires, history.train) == (30, 80, 25)
    assert (history.right, history.images) == (0, 0)


@pytest.mark.parametrize(
    ("what", "steps", "batch", "heldout", "every", "images"),
    [
        ("digits", 20, 64, 143, None, None),  # three epochs would pay for 32 images
        ("Fashion-MNIST", 460, 128, 1000, 115, 61),
        ("CIFAR-10", 382, 128, 1000, 95, 50),
        ("ImageNet", 5000, 256, 10_000, 1250, MOST),
        ("so few images held out", 5000, 256, 100, 1250, 100),
        ("almost none held out", 5000, 256, FEWEST - 1, None, None),
        ("enough for one in the middle", 130, 128, 1000, 65, 34),
    ],
)
def test_where_trip_wires_lie(
    what: str, steps: int, batch: int, heldout: int, every: int | None, images: int | None
) -> None:
    wires = trip_wires(steps=steps, batch_size=batch, heldout=heldout)
    assert (wires and wires.every, wires and wires.images) == (every, images), what


@settings(max_examples=500)
@given(st.integers(1, 20_000), st.integers(2, 1024), st.integers(0, 50_000))
def test_trip_wires_cost_two_percent_at_most(steps: int, batch: int, heldout: int) -> None:
    wires = trip_wires(steps=steps, batch_size=batch, heldout=heldout)
    if wires is None:
        return
    due = [step for step in range(1, steps + 1) if wires.due(step, steps)]
    assert 1 <= len(due) <= 3
    assert FEWEST <= wires.images <= min(MOST, heldout)
    assert len(due) * wires.images * PROBE_UNITS <= SHARE * steps * batch * STEP_UNITS
    assert all(later - earlier >= steps // 4 for earlier, later in pairwise([0, *due, steps]))


def test_a_rollback_draws_other_numbers_and_none_draws_the_recipes() -> None:
    seeds = [training_seed(seed, rollbacks) for seed in (0, 1, 2**64 - 1) for rollbacks in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert [training_seed(seed, 0) for seed in (0, 1, 2**64 - 1)] == [0, 1, 2**64 - 1]
    assert all(0 <= seed < 1 << 64 for seed in seeds)


def test_histories_survive_the_checkpoint() -> None:
    history = NonFiniteHistory(steps=5, row=2, recent=(7, 9), answered=(Place(0, 3), Place(1, 0)))
    collapse = CollapseHistory(rollbacks=2, good=40, highest=61.5, train=33.3, right=12.0, images=64.0, warned=1)
    for value in (history, collapse, NonFiniteHistory(), CollapseHistory()):
        text = strict_json.dump(value)
        found = strict_json.load(type(value), text, "train.json", error=CheckpointError, fix="")
        assert found == value
        assert not isinstance(found, NonFiniteHistory) or all(isinstance(at, Place) for at in found.answered)
