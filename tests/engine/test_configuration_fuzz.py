"""Random configurations, as command lines, as config.json and as Python: one that is right makes a training step of
finite loss, one that is wrong is one typed error on one line that names what is wrong and says what to do.

Every case is a function of its number and of HARDFAST_FUZZ_SEED, which a failure prints. `configurations.py` draws the
values; it reads the options off the dataclasses, so that new ones are tried by themselves.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("pydantic")
from hardfast.engine import cli, parsing
from hardfast.engine.errors import UsageError
from hardfast.engine.methods import METHODS, Position
from hardfast.engine.recipes import Recipe, from_json, to_json
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import DataError, open_dataset

from ..night import figure, tries
from .broken_configs import broken_json
from .configurations import NOT_HERE, Option, options_of, recipe_options, tiny, with_value

SEED = int(os.environ.get("HARDFAST_FUZZ_SEED", "0"))
AREA = "configuration fuzz"
HANG = 300  # seconds after which a case counts as hung: also on a machine that does much else
ADVICE = re.compile(
    r"must|choose|\buse\b|see `|write|lists all|did you mean|give|drop|\bset\b|name |restore|lower|keep|needs|\brun\b"
    r"|check|\badd\b|only|one of|those of|has none"
)
METHOD_NAMES = tuple(METHODS)
OF_THE_COMMAND = ("device", "evaluate", "save_minutes")
# Options of which each fits each: a wrong one among them is the only thing that is wrong.
APART = (
    *("epsilon", "epochs", "label_smoothing", "seed", "box", "flip", "weight_average", "guard", "save_minutes"),
    *("data.split_seed", "data.synthetic.num_classes", "loader.watchdog", "loader.workers", "execution.tf32"),
    *("optimizer.lr", "optimizer.weight_decay"),
)
BASE = (
    *("epochs", "batch_size", "crop_padding", "data.name", "data.image_size", "data.heldout", "model.name"),
    *("method.generator_width", "method.steps", "method.replays"),
)  # that make a step tiny, with those of data.synthetic


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What a first step imports takes seconds, and is no part of a case."""
    step_of(tiny("fgsm-sdi"))


@dataclass
class Tally:
    """What came of the cases."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0

    @contextmanager
    def case(self, kind: str, what: object) -> Iterator[None]:
        """One case: an exception of any kind is a failure that says what was tried."""
        began = time.perf_counter()
        previous = signal.signal(signal.SIGALRM, _hung)
        signal.alarm(HANG)
        try:
            yield
        except (Exception, SystemExit) as error:
            self.failures.append(f"[{kind}] {str(what)[:600]}\n    {type(error).__name__}: {str(error)[:300]}")
            print(self.failures[-1], flush=True)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
            self.counts[kind] += 1
            self.longest = max(self.longest, time.perf_counter() - began)

    def close(self, wrong: int, more: str = "") -> None:
        """Adds the figures, and fails where a case did."""
        tried = self.counts.total()
        counts = [f"{kind} {count}" for kind, count in sorted(self.counts.items())]
        parts = "; ".join([", ".join(counts), *([more] if more else [])])
        figure(AREA, tried=tried, held=tried - len(self.failures), fired=wrong, note=parts)
        print(f"seed {SEED}: {parts}; the longest took {self.longest:.1f} s")
        shown = "\n".join(self.failures[:12])
        assert not self.failures, f"{len(self.failures)} of {tried} cases (HARDFAST_FUZZ_SEED={SEED}):\n{shown}"


def _hung(*_: object) -> None:
    raise TimeoutError("hangs")


def names(message: str, keys: Sequence[str]) -> bool:
    """Whether a message names one of these options, with its group."""
    said = re.sub(r"stages\.\d+", "stages", message.replace("_", "-").lower())
    return any(re.search(rf"(?<![\w.]){re.escape(key.replace('_', '-').lower())}(?!\w)", said) for key in keys)


def check_message(message: str, keys: Sequence[str]) -> None:
    """One line, which names what is wrong and says what to do, and no longer than a terminal bears."""
    assert "\n" not in message.strip(), f"several lines: {message!r}"
    assert message.isprintable() or not set(message.strip()) & set("\0\x1b\r"), f"control characters: {message!r}"
    assert len(message) < 1000, f"{len(message)} characters: {message[:200]}"
    assert names(message, keys), f"names none of {keys}: {message}"
    assert ADVICE.search(message), f"no advice: {message}"


def step_of(recipe: Recipe) -> tuple[float, bool]:
    """One real training step: its loss, and whether the run itself has seen that it is not finite."""
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    try:
        run.net.train()
        run.method.begin_epoch(0, recipe.seed)
        batch = next(iter(run.loader.epoch(0)))
        run.follow_schedule()
        run.step(batch, Position(0, 0))
        return run.tally.read()[0], any(run.watch.read())
    finally:
        run.close()


def step_or_complaint(make: Callable[[], Recipe], keys: Sequence[str], *, finite: bool = True) -> str:
    """`step`, `refused` or `not here`: makes a recipe and a step of it, or checks the error.

    With `finite=False` a loss may be infinite, if the run has seen it.
    """
    try:
        recipe = make()
        assert from_json(to_json(recipe), "config.json") == recipe
        if recipe.execution.mode in NOT_HERE["execution.mode"]:
            return "not here"
        loss, seen = step_of(recipe)
    except (UsageError, DataError) as error:
        check_message(str(error), keys)
        return "refused"
    assert (math.isfinite(loss) and loss >= 0 and not seen) or (seen and not finite), f"loss {loss}, seen: {seen}"
    return "step"


# --- command lines


@dataclass
class Line:
    """A command line that is being made up."""

    method: str
    settings: dict[str, list[str]]
    broken: str | None = None  # the option, or the word, that is wrong

    def words(self, out: Path, r: random.Random) -> list[str]:
        """After `hardfast`; what misses its value comes last."""
        groups = [words for key, words in self.settings.items() if key != self.broken]
        r.shuffle(groups)
        last = self.settings.get(self.broken or "", [])
        method = [] if self.method == "fgsm-sdi" else ["--method", self.method]
        return ["train", "digits", "--out", str(out), *method, *(word for group in groups for word in group), *last]


def drawn_line(r: random.Random, *, apart: bool = False) -> tuple[Line, dict[str, Option]]:
    """Right options on top of those that make a step tiny; with `apart`, such as cannot contradict each other."""
    method = r.choice(METHOD_NAMES)
    recipe = tiny(method)
    command = [option for option in options_of(cli.TrainArguments) if option.key in OF_THE_COMMAND]
    options = {option.key: option for option in [*recipe_options(method), *command] if option.key != "stages"}
    base = [key for key in options if key in BASE or key.startswith("data.synthetic.")]
    settings = {key: options[key].words(_value(recipe, key)) for key in base}
    for key in r.sample(sorted(APART if apart else options), r.randint(0, 5)):
        settings[key] = options[key].words(options[key].right(r))
    settings["evaluate"] = ["--no-evaluate"]
    return Line(method, settings), options


def _value(options: Any, key: str) -> Any:
    for part in key.split("."):
        options = getattr(options, part)
    return options


def refused_line(words: Sequence[str], folder: Path, keys: Sequence[str], capture: pytest.CaptureFixture[str]) -> None:
    """Gives a wrong command line to the real entry, and checks how it is refused."""
    capture.readouterr()
    before = sys.argv
    sys.argv = ["hardfast", *words]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
        said = capture.readouterr()
        left = [path.name for path in folder.iterdir()]
        for name in left:
            shutil.rmtree(folder / name)
    assert stop.value.code == 2, f"exit code {stop.value.code}: {said.err[-300:]}"
    assert said.err.startswith("hardfast: ") and said.err.endswith("\n")
    check_message(said.err.removeprefix("hardfast: ").rstrip("\n"), keys)
    assert not left, f"left behind: {left}"


def broken_line(r: random.Random) -> tuple[str, Line, list[str]]:
    """(kind of mistake, command line, what the answer may name)"""
    line, options = drawn_line(r, apart=True)
    kind = r.choices(["value", "misspelt", "twice", "other method's", "too many"], [70, 12, 8, 5, 5])[0]
    if kind == "value":
        option = options[r.choice(sorted(set(options) - {"evaluate"}))]
        line.settings[option.key] = option.wrong_words(r)
        line.broken = option.key
        return kind, line, [option.key]
    if kind == "misspelt":
        flag = _misspelt(r, r.choice(sorted(options)), options)
        line.settings[flag] = [flag, "1"]
        return kind, line, [flag]
    if kind == "twice":
        key = r.choice(sorted(set(line.settings) - {"evaluate"}))
        same = line.settings[key] if r.random() < 0.5 else options[key].words(options[key].right(r))
        line.settings[f"{key} again"] = same
        return kind, line, [key, re.sub(r"(^|\.)(?=[^.]*$)", r"\1no-", key)]
    if kind == "other method's":
        others = [option for name in METHODS for option in options_of(METHODS[name], "method.")]
        option = r.choice([option for option in others if option.key not in options])
        line.settings[option.key] = option.words(option.right(r))
        return kind, line, [option.flag]
    key = r.choice([key for key, words in line.settings.items() if len(words) == 2 and not key.startswith("model.")])
    word = r.choice(["stray", "-", "—", "💥", "3"])
    line.settings[key] = [*line.settings[key], word]
    return kind, line, [key, word]


def _misspelt(r: random.Random, key: str, options: dict[str, Option]) -> str:
    """The key's flag with one letter left out, doubled, foreign, in upper case, or too many."""
    while True:
        letters = list(key.replace("_", "-"))
        place = r.randrange(len(letters))
        letter = letters[place]
        letters[place : place + 1] = r.choice([[], [letter] * 2, ["ö"], [letter.upper()], ["x", letter]])
        word = "".join(letters).strip("-.")
        if word and word.replace("-", "_") not in options and word not in ("out", "method", "help", "h"):
            return f"--{word}"


@pytest.mark.parametrize("part", range(2))
def test_right_command_lines(part: int) -> None:
    """Of options that are right one by one; where two contradict each other, one of them is named."""
    tally, ends = Tally(), Counter[str]()
    for number in range(part, tries(100, 1600), 2):
        r = random.Random(f"{SEED} right {number}")
        line, _ = drawn_line(r)
        words = line.words(Path("unused"), r)
        with tally.case("line: right", words):
            ends[step_or_complaint(lambda w=words: recipe_of(w), [*line.settings, "method", "attack_bn"])] += 1
    assert ends["step"] > ends["refused"] and ends["step"] > 10 * ends["not here"], ends
    tally.close(0, f"of the right: {ends['step']} stepped, {ends['refused']} contradicted, {ends['not here']} not here")


def test_right_commands(tmp_path: Path) -> None:
    """The whole command, to the checkpoint of its last epoch."""
    tally = Tally()
    for number in range(tries(5, 60)):
        r = random.Random(f"{SEED} whole {number}")
        line, _ = drawn_line(r, apart=True)
        line.settings["epochs"] = ["--epochs", "1"]
        words = line.words(tmp_path / str(number), r)
        with tally.case("line: right, trained", words):
            assert cli.run(words) == 0
            assert RunFolder(tmp_path / str(number)).checkpoint("last").record.at.epoch == 1
    tally.close(0)


def test_wrong_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = wrong_lines(tries(105, 2000), tmp_path, capsys)
    tally.close(tally.counts.total())


def wrong_lines(cases: int, folder: Path, capture: pytest.CaptureFixture[str], kind: str | None = None) -> Tally:
    """Tries so many wrong command lines; with `kind`, those with that kind of mistake among them."""
    tally = Tally()
    for number in range(cases):
        r = random.Random(f"{SEED} wrong {number}")
        found, line, keys = broken_line(r)
        words = line.words(folder / "run", r)
        if kind in (None, found):
            with tally.case(f"line: {found}", (words[4:], line.broken)):
                refused_line(words, folder, keys, capture)
    return tally


def test_extreme_command_lines() -> None:
    """Numbers of any size: a step, or a refusal that names the option."""
    tally, ends = Tally(), Counter[str]()
    for number in range(tries(50, 900)):
        r = random.Random(f"{SEED} extreme {number}")
        line, options = drawn_line(r, apart=True)
        numeric = [key for key, option in options.items() if {int, float} & set(option.kinds)]
        key = r.choice([*sorted(numeric), "model.mean", "model.std"])
        line.settings[key] = options[key].words(options[key].extreme(r))
        words = line.words(Path("unused"), r)
        keys = [key, "data.heldout", "batch_size", "crop_padding"]  # the others: of a data set that became small
        with tally.case("line: extreme", words):
            ends[step_or_complaint(lambda w=words: recipe_of(w), keys, finite=False)] += 1
    assert min(ends["step"], ends["refused"]) > 5, ends
    tally.close(ends["refused"], f"of the extreme: {ends['step']} stepped, {ends['refused']} refused")


def recipe_of(words: Sequence[str]) -> Recipe:
    """What `hardfast train` would train; its other options are checked as well."""
    return cli.train_arguments(words[1:]).recipe


# --- config.json


def test_wrong_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(tries(80, 1400)):
        r = random.Random(f"{SEED} json {number}")
        kind, raw, keys = broken_json(r)
        (folder / "config.json").write_bytes(raw)
        with tally.case(f"json: {kind}", (keys, raw[:400])):
            with pytest.raises(UsageError) as raised:
                RunFolder(folder).recipe()
            check_message(str(raised.value), keys)
            assert str(folder / "config.json") in str(raised.value)
            if number % 5 == 0:
                capsys.readouterr()
                assert cli.run(["evaluate", str(folder)]) == 2
                assert capsys.readouterr().err.count("\n") == 1
            assert [path.name for path in folder.iterdir()] == ["config.json"]
    tally.close(tally.counts.total())


# --- Python


def test_wrong_python(tmp_path: Path) -> None:
    """Values of another type anywhere in a recipe, by `dataclasses.replace`, which calls the constructors."""
    tally = Tally()
    for number in range(tries(60, 1040)):
        r = random.Random(f"{SEED} python {number}")
        recipe = tiny(r.choice(METHOD_NAMES))
        option = r.choice(recipe_options(recipe.method.name))
        value = option.wrong_object(r)
        with tally.case("python: type", (option.key, type(value))):
            with pytest.raises((UsageError, DataError)) as raised:
                with_value(recipe, option.key, value)
            check_message(str(raised.value), [option.key])
    for head in ("data", "loader", "model", "optimizer", "schedule", "execution", "method"):
        for value in (None, {}, "x", 3, []):
            with tally.case("python: group", (head, value)):
                with pytest.raises(UsageError) as raised:
                    replace(tiny("standard"), **{head: value})
                check_message(str(raised.value), [head])
        with tally.case("python: unknown", head), pytest.raises(TypeError, match="'lrr'"):  # Python's own
            replace(getattr(tiny("standard"), head), lrr=1)
    tally.close(tally.counts.total())


# --- real processes, and what the tests above would see


def test_real_processes(tmp_path: Path) -> None:
    """Some of the wrong command lines as a shell gives them, and one that is right."""
    tally = Tally()
    for number in range(tries(2, 12)):
        r = random.Random(f"{SEED} process {number}")
        while True:
            kind, line, keys = broken_line(r)
            words = line.words(tmp_path / "run", r)
            if not any("\0" in word for word in words):  # no shell can give these
                break
        with tally.case(f"process: {kind}", words):
            done = subprocess.run(
                [sys.executable, "-c", "from hardfast.engine.cli import main; main()", *words],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
            )
            assert done.returncode == 2, done.stderr[-300:]
            assert done.stderr.startswith("hardfast: ") and done.stderr.count("\n") == 1
            check_message(done.stderr.removeprefix("hardfast: ").rstrip("\n"), keys)
            assert not list(tmp_path.iterdir())
    tally.close(tally.counts.total())


def unchecked_types(patch: pytest.MonkeyPatch) -> None:
    for module in ("loaders.datasets", "loaders.loader_options", "loaders.synthetic", "engine.recipes.recipe"):
        patch.setattr(f"hardfast.{module}.check_options", lambda *_: None)


def unchecked_words(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parsing, "_check_words", lambda _: None)


def says(words: str) -> Callable[[pytest.MonkeyPatch], None]:
    def change(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(cli.console, "error", lambda _: print(words, file=sys.stderr))

    return change


def another_exception(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("epochs")

    patch.setattr(cli, "parse", fail)


def writes_first(patch: pytest.MonkeyPatch) -> None:
    def train(words: list[str]) -> int:
        Path(words[words.index("--out") + 1]).mkdir()
        return cli.run_train(words)

    patch.setitem(cli.COMMANDS, "train", train)


@pytest.mark.parametrize(
    ("defect", "kind", "seen"),
    [
        (unchecked_words, "twice", "exit code 0"),
        (says("hardfast: that is wrong: see `hardfast train --help`"), "value", "names none"),
        (says("hardfast: epochs must be right\nand so must all"), "value", "several lines"),
        (says("Traceback"), "value", "startswith"),
        (another_exception, "value", "KeyError"),
        (writes_first, "value", "left behind"),
    ],
)
def test_wrong_command_lines_see(
    defect: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    seen: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative controls: a defect of each kind is reported, and nothing is without one."""
    cases = 40 if kind == "twice" else 4
    assert not wrong_lines(cases, tmp_path, capsys, kind).failures
    defect(monkeypatch)
    tally = wrong_lines(cases, tmp_path, capsys, kind)
    assert tally.failures and all(seen in failure for failure in tally.failures), tally.failures


def test_python_and_steps_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for values of another type, and for a loss that is not finite."""
    unchecked_types(monkeypatch)
    with pytest.raises(TypeError):
        with_value(tiny("standard"), "optimizer.lr", "0.1")
    assert with_value(tiny("standard"), "box", "yes").box == "yes"  # accepted in silence
    monkeypatch.setattr("hardfast.engine.models.options.LARGEST_CONSTANT", 1e300)
    exploding = with_value(tiny("standard"), "model.mean", (1e299,) * 3)
    with pytest.raises(AssertionError, match=r"seen: True|loss nan"):
        step_or_complaint(lambda: exploding, ["model.mean"])
