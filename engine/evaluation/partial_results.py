"""What is known of an attack that is still running, on disk: a killed evaluation goes on from there.

evaluations/partial-ATTACK-FINGERPRINT.json   progress of one attack, bound to all that decides its result

Another evaluation has another fingerprint, so the two never mix and neither costs the other its progress.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..run_folder import write_whole
from .stages import Progress, Stage

SAVE_SECONDS = 0.5  # at most so much work is lost; a write takes milliseconds, so short attacks lose nothing to it


class PartialResult:
    """The file of one attack.

    Args:
        folder: where it lies; made when something is written.
        attack: its name.
        about: all that decides its result, JSON values.
    """

    def __init__(self, folder: Path, attack: str, about: Mapping[str, Any]) -> None:
        self.about: dict[str, Any] = json.loads(json.dumps(dict(about)))  # as it comes back from the file
        self.folder, self.attack = folder, attack
        self.path = folder / f"partial-{attack}-{_sha256(self.about)[:12]}.json"
        self._saved = time.perf_counter()

    def load(self, samples: int, stages: Sequence[Stage]) -> Progress | None:
        """What an interrupted evaluation left; None, with a line that says why, if it left nothing that may be used."""
        if not self.path.exists():
            self._say_what_lies_there()
            return None
        try:
            content = json.loads(self.path.read_text())
            progress = Progress.from_json(content["progress"])
            whole = content["sha256"] == _sha256([content["about"], content["progress"]])
            if not whole or content["about"] != self.about or not _fits(progress, samples, stages):
                raise ValueError
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            console.line(f"  {self.path} is damaged: not used, {self.attack} begins anew")
            return None
        return progress

    def save(self, progress: Progress) -> None:
        """Writes the progress, unless it was written a moment ago."""
        if time.perf_counter() - self._saved >= SAVE_SECONDS:
            self.save_now(progress)

    def save_now(self, progress: Progress) -> None:
        """Writes the progress, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = progress.to_json()
        content = {"about": self.about, "progress": values, "sha256": _sha256([self.about, values])}
        write_whole(self.path, json.dumps(content, indent=1) + "\n")
        self._saved = time.perf_counter()

    def discard(self) -> None:
        """The attack is reported: nothing of it is left behind, nor what a kill during a write left."""
        for path in (self.path, *self.folder.glob(f".{self.path.name}.tmp-*")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody's files lie there, or nothing ever did
            self.folder.rmdir()

    def _say_what_lies_there(self) -> None:
        for path in sorted(self.folder.glob(f"partial-{self.attack}-*.json")):
            try:
                other = json.loads(path.read_text())["about"]
                name = next(key for key, value in self.about.items() if other.get(key) != value)
                difference = f"its {_words(name, other.get(name))}, here {_words('', self.about[name])}"
            except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
                difference = "it is damaged"
            console.line(f"  {path} is of another evaluation ({difference}): not used, and left where it is")
            return


def _fits(progress: Progress, samples: int, stages: Sequence[Stage]) -> bool:
    """Whether the numbers and masks can be this attack's."""
    masks = (progress.entered, progress.standing)
    return (
        all(mask.shape == (samples,) for mask in masks)
        and not bool((progress.standing & ~progress.entered).any())
        and 0 <= progress.stage <= len(stages)
        and 0 <= progress.done <= int(progress.entered.sum())
        and list(progress.accuracy) == [stage.name for stage in stages[: progress.stage]]
    )


def _words(name: str, value: Any) -> str:
    text = json.dumps(value)
    return f"{name} {text[:40]}{'...' if len(text) > 40 else ''}".strip()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def conditions(device: torch.device) -> dict[str, str]:
    """What else must be the same for two halves of a figure to be one."""
    return {"device": device.type, "torch": torch.__version__}
