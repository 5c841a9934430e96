"""What an evaluation leaves on disk, written as soon as each attack is done.

evaluation.json             accuracy in percent per attack, the newest of each, of the checkpoint evaluated last
evaluations/best.json       the same of each checkpoint, so that `best` and `last` both stay
evaluations.jsonl           every attack's result, a line each
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..recipes.recipe import Recipe
from ..run_folder import RunFolder, Which, write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackReport:
    """One attack's result."""

    accuracy: float  # percent of `samples` that the net still gets right
    samples: int
    seconds: float
    test_images: int = 0  # of the whole test set, of which `samples` are the first; 0 where an old file does not say
    stages: dict[str, float] = field(default_factory=dict)  # AutoAttack: accuracy after each of its attacks
    warnings: list[str] = field(default_factory=list)  # why the accuracy is doubtful


def images_of(report: Mapping[str, Any]) -> str:
    """`1,000 of 10,000`, or `all 10,000`: what always stands beside an accuracy."""
    samples, whole = report["samples"], report["test_images"]
    if not whole:
        return f"{samples:,}"
    return f"all {whole:,}" if samples == whole else f"{samples:,} of {whole:,}"


class EvaluationFiles:
    """The files of one net's evaluations.

    Args:
        path: evaluation.json, or another file of its shape.
        about: what two evaluations must share for their attacks to stand in one file: see `identity`.
        own: a second copy that only evaluations of this checkpoint touch: it keeps what `path` loses to another one.
        history: where every result is a line; None is nowhere.
        folder: of what is not done yet (`partial_results.py`); by default `evaluations` beside `path`.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        *,
        own: Path | None = None,
        history: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.path, self.about, self.own, self.history = path, dict(about), own, history
        self.folder = path.parent / "evaluations" if folder is None else folder
        self._done: dict[str, AttackReport] = {}

    def keep(self, name: str, result: AttackReport, *, samples: int) -> dict[str, Any]:
        """Adds one attack to the files, which may have grown since, and to the history.

        Args:
            name: of the attack.
            result: of the attack.
            samples: how many images the evaluation sees, where an attack does not see fewer.

        Returns:
            What evaluation.json holds now.
        """
        self._done[name] = result
        attacks = self.known() | {attack: asdict(found) for attack, found in self._done.items()}
        accuracy = {attack: found["accuracy"] for attack, found in attacks.items()}
        # `samples` is that of the evaluation that wrote last; where an earlier attack saw others, `attacks` says so.
        report = {
            **self.about,
            "samples": samples,
            "test_images": result.test_images,
            "accuracy": accuracy,
            "attacks": attacks,
        }
        text = json.dumps(report, indent=2) + "\n"
        if self.own is not None:
            self.own.parent.mkdir(exist_ok=True)
            write_whole(self.own, text)
        write_whole(self.path, text)
        if self.history is not None:
            _note(self.history, {**self.about, "attack": name, **asdict(result)})
        return report

    def known(self) -> dict[str, dict[str, Any]]:
        """The attacks that stand in the files already, as `AttackReport`s in dicts."""
        places = (self.own, self.path) if self.own is not None else (self.path,)
        return next((found for place in places if (found := earlier_attacks(place, self.about))), {})


def run_files(folder: RunFolder, about: Mapping[str, Any]) -> EvaluationFiles:
    """The files of a run's evaluations, of the checkpoint that `identity` describes."""
    return EvaluationFiles(
        folder.evaluation,
        about,
        own=folder.path / "evaluations" / f"{about['checkpoint']}.json",
        history=folder.path / "evaluations.jsonl",
    )


def _note(history: Path, line: dict[str, Any]) -> None:
    """Adds a line to the history, unless it is there already, as it is where the process was killed just after."""
    try:
        text = history.read_text()
    except FileNotFoundError:
        text = ""
    if any(_without_date(earlier) == line for earlier in text.splitlines()):
        return
    with history.open("a") as file:
        torn = text and not text.endswith("\n")  # by a kill or a full disk
        dated = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **line}
        file.write(("\n" if torn else "") + json.dumps(dated) + "\n")


def _without_date(line: str) -> Any:
    try:
        values = json.loads(line)
        return {key: value for key, value in values.items() if key != "date"}
    except (ValueError, AttributeError):
        return None


def earlier_attacks(path: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The attacks of an evaluation.json, if it is `about` the same checkpoint, weights, epsilon and seed.

    Returns:
        `AttackReport`s as dicts, each with its own number of images; empty if there are none, or the file is not ours.
    """
    try:
        earlier = json.loads(path.read_text())
        if any(earlier[key] != value for key, value in about.items()):
            return {}
        return {name: asdict(AttackReport(**found)) for name, found in earlier["attacks"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the history keeps what was there
        return {}


def identity(which: Which, checkpoint: Checkpoint, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What two evaluations must share for their attacks to stand in one evaluation.json."""
    return {
        "checkpoint": which,
        "step": checkpoint.record.at.total,
        "model_sha256": checkpoint.model_sha256,
        "epsilon": recipe.epsilon,
        "seed": seed,
        "rollbacks": checkpoint.record.collapse.rollbacks,  # of the run until then: see `Recipe.guard`
    }
