"""Finished runs side by side: runs that differ in nothing but the seed are one row, with mean and deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import recipes
from ..errors import UsageError
from ..evaluation import ATTACKS
from ..evaluation.attacks import gradient_attacks
from ..methods import method_options
from ..recipes.recipe import Recipe
from ..run_folder import RunFolder
from ..threat import format_pixels, parse_pixels
from . import paper
from .differences import NOT_DECIDING, as_option, as_words, changed, fields_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What accuracies must share to be comparable."""

    dataset: str
    image_size: int | None  # None is the data set's own
    epsilon: str
    attack_step: str  # of PGD and C&W
    checkpoint: str

    def __str__(self) -> str:
        size = "" if self.image_size is None else f" of {self.image_size}x{self.image_size}"
        attack = f"epsilon {self.epsilon}, attack step {self.attack_step}"
        return f"{self.dataset}{size}, {attack}, {self.checkpoint} checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One attack's result."""

    accuracy: float  # percent
    images: int
    test_images: int  # of the whole test set; 0 where an old file does not say
    warnings: tuple[str, ...] = ()  # why the accuracy is doubtful


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """One run that is trained and evaluated."""

    path: Path
    recipe: Recipe
    results: dict[Conditions, dict[str, Measured]]
    step_ms: float  # mean time of a step over the run, without evaluation and saving
    train_minutes: float  # all steps
    wall_minutes: float
    machine: str  # device, execution mode and precision
    rollbacks: int = 0  # of the guard against catastrophic overfitting; 0 where an old log does not say


@dataclass(frozen=True, kw_only=True, slots=True)
class Unready:
    """A run that cannot stand in a table yet, and why."""

    path: Path
    missing: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Runs of one recipe under the same conditions, seed by seed."""

    conditions: Conditions
    runs: tuple[FinishedRun, ...]
    attacks: dict[str, tuple[Measured, ...]]  # one for each run that was attacked so
    beside: paper.Row | None  # of the paper
    apart: tuple[str, ...] = ()  # the fields, by dotted name, that took the paper's row away

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first run; the others differ in the seed."""
        return self.runs[0].recipe

    @property
    def test_images(self) -> int:
        """How many test images the data set has; 0 where no evaluation says."""
        return max(one.test_images for measured in self.attacks.values() for one in measured)

    @property
    def method(self) -> str:
        """The method with the options that are not its defaults: `fgsm-sdi (k 5)`."""
        name = self.recipe.method.name
        plain = Recipe(method=method_options(name))
        return name + _in_brackets(
            {key: value for key, value in changed(self.recipe, plain).items() if key.startswith("method.")}
        )

    @property
    def recipe_words(self) -> str:
        """The recipe's name with what was changed of it beside the method and the seed."""
        name = self.recipe.name
        if name not in recipes.PRESETS:
            return name
        differing = changed(self.recipe, recipes.get(name))
        kept = {key: value for key, value in differing.items() if key != "seed" and not key.startswith("method.")}
        return name + _in_brackets(kept)

    @property
    def figures(self) -> dict[str, float]:
        """The paper's figures for this checkpoint, by attack, and `paper.MINUTES`; empty where it has none."""
        if self.beside is None:
            return {}
        return self.beside.figures.get(self.conditions.checkpoint, self.beside.figures.get("reported", {}))

    def accuracies(self, attack: str) -> list[float]:
        """Percent, seed by seed; empty where no run met the attack."""
        return [one.accuracy for one in self.attacks.get(attack, ())]

    def warnings(self, attack: str) -> list[str]:
        """Why the evaluation found an attack's accuracies doubtful, without repetitions."""
        return list(dict.fromkeys(text for one in self.attacks.get(attack, ()) for text in one.warnings))

    def images(self, attack: str) -> list[int]:
        """The numbers of images that the runs were attacked on, without repetitions."""
        return sorted({one.images for one in self.attacks.get(attack, ())})


def find_runs(paths: Sequence[str]) -> list[Path]:
    """The run folders that were named, or that lie directly in a folder that was; each once.

    Raises:
        UsageError: there is no path, or one is no folder or holds no run.
    """
    if not paths:
        raise UsageError("compare needs RUN...: name folders of runs, or a folder that holds them")
    found: dict[Path, Path] = {}
    for name in paths:
        path = Path(name)
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "is not there"
            raise UsageError(f"RUN {path} {what}: name folders of runs, or a folder that holds them")
        runs = [path] if RunFolder(path).config.exists() else sorted(one.parent for one in path.glob("*/config.json"))
        if not runs:
            raise UsageError(f"RUN {path} holds no run, nor do its folders (no config.json): name folders of runs")
        found |= {run.resolve(): run for run in runs}
    return list(found.values())


def read_run(path: Path) -> FinishedRun | Unready:
    """What a run's files say: config.json, log.jsonl, environment.json and evaluations.jsonl."""
    try:
        return _read(path)
    except (UsageError, OSError) as error:
        return Unready(path=path, missing=str(error).removeprefix(f"{path}/"))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        return Unready(path=path, missing=f"log.jsonl is damaged ({error!r}): restore it, or train with another --out")


def _read(path: Path) -> FinishedRun | Unready:
    folder = RunFolder(path)
    recipe = folder.recipe()
    log = _json_lines(folder.log)
    epochs = log[-1]["epoch"] if log else 0
    if epochs < recipe.epochs:
        unfinished = f"trained for {epochs} of {recipe.epochs} epochs: the command that began it goes on"
        return Unready(path=path, missing=unfinished)
    final = {"last": log[-1]["step"], "best": _best_step(folder)}
    evaluated = _json_lines(path / "evaluations.jsonl")
    results: dict[Conditions, dict[str, Measured]] = {}
    for one in evaluated:  # the newest of each wins
        try:
            if one["attack"] not in ATTACKS or final[one["checkpoint"]] not in (None, one["step"]):
                continue
            results.setdefault(_conditions(recipe, one), {})[one["attack"]] = _measured(one)
        except (LookupError, TypeError, ValueError) as error:
            why = f"evaluations.jsonl is damaged ({error!r}): remove it and evaluate again: `hardfast evaluate {path}`"
            return Unready(path=path, missing=why)
    if not results:
        why = "evaluated before it was finished" if evaluated else "not evaluated"
        return Unready(path=path, missing=f"{why}: `hardfast evaluate {path}`")
    return FinishedRun(
        path=path,
        recipe=recipe,
        results=results,
        step_ms=1000 * log[-1]["step_seconds"] / log[-1]["step"],
        train_minutes=log[-1]["step_seconds"] / 60,
        wall_minutes=log[-1]["wall_seconds"] / 60,
        machine=_machine(folder),
        rollbacks=int(log[-1].get("rollbacks", 0)),
    )


def _conditions(recipe: Recipe, line: Mapping[str, Any]) -> Conditions:
    """Those of a line of evaluations.jsonl; radius and step as numbers, so that spelling makes no other table."""
    epsilon = parse_pixels(line["epsilon"], "epsilon")
    pgd = gradient_attacks(epsilon, recipe.parsed_attack_step())["pgd-10"]
    return Conditions(
        dataset=recipe.data.name,
        image_size=recipe.test_size or recipe.data.image_size,
        epsilon=format_pixels(epsilon),
        attack_step=format_pixels(pgd.alpha),
        checkpoint=line["checkpoint"],
    )


def _measured(line: Mapping[str, Any]) -> Measured:
    return Measured(
        accuracy=float(line["accuracy"]),
        images=int(line["samples"]),
        test_images=int(line.get("test_images", 0)),
        warnings=tuple(line.get("warnings", ())),
    )


def rows_of(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row for each recipe and each set of conditions, in the order in which they first come; rows that may be
    compared stand together.
    """
    grouped: dict[Conditions, dict[str, list[FinishedRun]]] = {}
    for run in runs:
        for conditions in run.results:
            grouped.setdefault(conditions, {}).setdefault(_key(run.recipe), []).append(run)
    found = []
    for conditions, by_recipe in grouped.items():
        for same in by_recipe.values():
            same.sort(key=lambda run: run.recipe.seed)
            attacks = {
                name: tuple(run.results[conditions][name] for run in same if name in run.results[conditions])
                for name in ATTACKS
            }
            recipe = same[0].recipe
            beside, apart = paper.row_beside(recipe), paper.differing(recipe)
            if beside is not None and beside.epsilon != conditions.epsilon:
                beside, apart = None, ["epsilon"]
            found.append(
                Row(
                    conditions=conditions,
                    runs=tuple(same),
                    attacks={name: measured for name, measured in attacks.items() if measured},
                    beside=beside,
                    apart=tuple(apart),
                )
            )
    return found


def mean_and_deviation(values: Sequence[float]) -> str:
    """`71.2 ± 0.8`, the sample deviation; without it for a single value."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _key(recipe: Recipe) -> str:
    """The same for recipes that differ in nothing that decides the result but the seed."""
    fields = fields_of(replace(recipe, seed=0))
    return json.dumps({name: as_words(value) for name, value in fields.items() if name not in NOT_DECIDING})


def _in_brackets(options: dict[str, Any]) -> str:
    words = [f"{as_option(name).removeprefix('method.')} {as_words(value)}" for name, value in options.items()]
    return f" ({', '.join(words)})" if words else ""


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; the half one that a full disk or a kill leaves at its end is left out."""
    found = []
    try:
        text = path.read_text()
    except OSError:
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [one for one in found if isinstance(one, dict)]


def _best_step(folder: RunFolder) -> int | None:
    """The step of the best checkpoint as the newest one records it; None where the checkpoints are gone."""
    records = sorted(folder.store.folder.glob("step-????????/train.json"))
    try:
        return int(json.loads(records[-1].read_text())["best"]["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _machine(folder: RunFolder) -> str:
    try:
        numerics = json.loads(folder.environment.read_text())["starts"][-1]["numerics"]
        return f"{numerics['device']}, {numerics['execution']}, {numerics['precision']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "an unknown device"
