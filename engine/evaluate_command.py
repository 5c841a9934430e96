"""The command `hardfast evaluate`: attacks, a table, evaluation.json, and RobustBench's claim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from . import console
from .errors import UsageError
from .evaluation import ATTACKS, DEFAULT_ATTACKS, AttackName, evaluate, identity
from .evaluation.claim import ClaimOptions, check_attacks, check_claimable, write_claim
from .evaluation.files import images_of, run_files
from .output_files import check_places
from .parsing import parse
from .run_folder import RunFolder, Which
from .signals import broken_off

GOES_ON = "stopped on request; the same command goes on where it was"


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Attacks a trained run at its own epsilon on its data set's test images. Killed, the same command goes on.

    Weights from elsewhere are attacked by `hardfast evaluate FILE`, which has options of its own: see
    `hardfast evaluate weights.pt --help`.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder of the run."""

    attacks: tuple[AttackName, ...] = ()
    """Which attacks; by default clean fgsm pgd-10 pgd-20 cw. apgd and aa (AutoAttack, standard) take minutes to hours
    and need pyautoattack."""

    checkpoint: tuple[Which, ...] = ("best",)
    """best on the held-out images (PGD-10; clean for standard training), last, or both; evaluation.json holds the one
    named first, evaluations/ each."""

    samples: int | None = None
    """Only the first so many test images; the number stands beside every accuracy."""

    aa_samples: int | None = None
    """Only the first so many of these for aa, which is the longest attack."""

    batch_size: int = 250
    """Images in a forward pass."""

    seed: int = 0
    """Of every random start."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    data_root: str | None = None
    """Where the data sets lie now, if not where the run found them."""

    json: str | None = None
    """Also write the result to this file."""

    claim: str | None = None
    """Also write RobustBench's entry of a model (clean and aa, on all test images) to this file. Without --attacks,
    from what evaluation.json holds."""

    entry: Annotated[ClaimOptions, tyro.conf.arg(name="claim")] = field(default_factory=ClaimOptions)


def run_evaluate(argv: Sequence[str]) -> int:
    """hardfast evaluate DIR [options]"""
    asked = parse(EvaluateArguments, argv, "hardfast evaluate")
    if len(set(asked.checkpoint)) < max(1, len(asked.checkpoint)):
        raise UsageError("checkpoint: name best, last, or each of them once")
    attacks = asked.attacks or (() if asked.claim is not None else DEFAULT_ATTACKS)
    check_places(json=None if asked.json is None else Path(asked.json))
    if asked.claim is not None:
        _check_claim(asked, Path(asked.claim), attacks)
    reports: list[dict[str, Any]] = []
    with broken_off(GOES_ON):
        for which in reversed(asked.checkpoint):  # the first named comes last, and stays in evaluation.json
            report = _evaluated(asked, attacks, which) if attacks else _stored(asked, which)
            reports.insert(0, {"checkpoint": which} | report)
    shown = [of_attacks(report, attacks) if attacks else report for report in reports]
    console.line()
    console.line(result_table(shown))
    if asked.json is not None:
        Path(asked.json).write_text(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2) + "\n")
    if asked.claim is not None:
        recipe = RunFolder(asked.run).recipe()
        write_claim(Path(asked.claim), reports[0], asked.entry, dataset=recipe.data.name, model=recipe.model.name)
        console.line(f"claim: {asked.claim}")
    return 0


def _evaluated(asked: EvaluateArguments, attacks: Sequence[AttackName], which: Which) -> dict[str, Any]:
    return evaluate(
        asked.run,
        attacks=attacks,
        checkpoint=which,
        samples=asked.samples,
        samples_of={} if asked.aa_samples is None else {"aa": asked.aa_samples},
        batch_size=asked.batch_size,
        seed=asked.seed,
        device=asked.device,
        data_root=asked.data_root,
    )


def _stored(asked: EvaluateArguments, which: Which) -> dict[str, Any]:
    """What was found out about a checkpoint before."""
    folder = RunFolder(asked.run)
    about = identity(which, folder.checkpoint(which), folder.recipe(), asked.seed)
    attacks = run_files(folder, about).known()
    return {**about, "accuracy": {name: found["accuracy"] for name, found in attacks.items()}, "attacks": attacks}


def _check_claim(asked: EvaluateArguments, place: Path, attacks: Sequence[str]) -> None:
    recipe = RunFolder(asked.run).recipe()
    check_claimable(place, recipe.data.name, recipe.epsilon)
    which = asked.checkpoint[0]
    whole = {"clean": asked.samples is None, "aa": asked.samples is None and asked.aa_samples is None}
    check_attacks(attacks, _stored(asked, which)["attacks"], whole, which)


def of_attacks(report: Mapping[str, Any], attacks: Sequence[str]) -> dict[str, Any]:
    """The report with those attacks that were asked for."""
    names = [name for name in ATTACKS if name in attacks]
    return {**report, **{key: {name: report[key][name] for name in names} for key in ("accuracy", "attacks")}}


def result_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """A line for each attack on each checkpoint, with the images it saw; what is doubtful stands below."""
    rows, doubts = [], []
    for report in reports:
        which = [report["checkpoint"]] if len(reports) > 1 else []
        for name, found in report["attacks"].items():
            mark = " ?" if found["warnings"] else ""
            rows.append([name, *which, f"{found['accuracy']:.2f} %{mark}", images_of(found)])
            doubts += [f"? {' '.join([name, *which])}: {line}" for line in found["warnings"]]
    header = ["attack", *(["checkpoint"] if len(reports) > 1 else []), "accuracy", "images"]
    return "\n".join([console.table(header, rows), *doubts])
