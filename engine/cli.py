"""The command `hardfast`: each subcommand is a dataclass whose docstrings are its help, and a function that runs it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from ..loaders import REGISTRY, DataError, DatasetName, LoaderDied, find, prepare
from . import console, recipes
from .environment import own_version
from .errors import EvaluationError, Stopped, StoppedByGuard, UsageError
from .evaluate_command import run_evaluate
from .evaluation import evaluate
from .methods import METHODS, method_options
from .output_files import check_places
from .parsing import parse, recipe_name
from .recipes.recipe import Recipe
from .run_folder import RunFolder
from .save_clock import SAVE_MINUTES
from .signals import broken_off
from .tables import compare, compare_tables, listing
from .trainer import train
from .weight_file import is_weight_file
from .weights_command import run_evaluate_weights

DONE, WRONG_USE, STOPPED, GUARD, INTERRUPTED = 0, 2, 75, 76, 130
SHORT_EVALUATION, SHORT_EVALUATION_SAMPLES = ("clean", "pgd-10"), 1000
METHOD = tyro.conf.arg(name="method", metavar="{" + ",".join(METHODS) + "}")

HELP = """\
hardfast: adversarially robust image classifiers, fast

  hardfast recipes [NAME]                   the presets like the paper's tables; all about one of them
  hardfast train RECIPE --out DIR           trains; the same command resumes; ends with a short evaluation
  hardfast evaluate DIR                     attacks a trained run: table, and DIR/evaluation.json
  hardfast evaluate FILE --data.name NAME   the same for weights from elsewhere, with --epsilon 8/255
  hardfast compare RUN...                   runs side by side, over their seeds, with the paper's rows
  hardfast data list | prepare NAME         the data sets; fetches one and checks it
  hardfast profile RECIPE                   where the time of a training step goes, phase by phase
  hardfast bench methods RECIPE --out DIR   trains and attacks several methods over several seeds: a table
  hardfast bench kernels                    times every kernel beside plain PyTorch, compiled PyTorch and a copy
  hardfast bench step                       a training step beside plain training and FGSM-SDI as others run it
  hardfast bench train | growth             time to robustness; how cost grows
  hardfast bench loaders                    images per second, and the loader's share of a training step
  hardfast bench safety RECIPE              the share of a training that saves and guards cost
  hardfast bench machine-code               what the kernels become on V100, A100 and H100, without one

Each says more with --help. Exit codes: 0 done, 2 wrong use, 75 stopped on request, or because its loader died, and
resumable, 76 stopped by a guard: training diverged, or overfitted again and again. SIGINT, SIGTERM and SIGUSR1 stop it
with 75; a second one ends it at once, as 130, 143 or 138, and the same command resumes from the last checkpoint.
"""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Trains a recipe into a folder, then attacks its best checkpoint briefly. The same command resumes a run."""

    out: str
    """Folder of the run: new, or holding this very run."""

    method: Annotated[str, METHOD] = "fgsm-sdi"
    """Train with another method than the recipe's: its own options take their defaults, everything else (epsilon, box,
    label smoothing, schedule) stays as the recipe has it."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    save_minutes: float = SAVE_MINUTES
    """Also write a checkpoint in mid-epoch when the last one is so many minutes old; 0: after every step. It changes
    nothing of what the run computes."""

    evaluate: bool = True
    """Attack the best checkpoint after training: clean and PGD-10 on up to 1,000 test images."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def train_arguments(argv: Sequence[str]) -> TrainArguments:
    """What the words after `hardfast train` ask for.

    Raises:
        UsageError, DataError: naming the first that is wrong.
    """
    name, rest = recipe_name("train", argv)
    recipe = _with_method(recipes.get(name), rest)
    default = TrainArguments(out=tyro.MISSING, method=recipe.method.name, recipe=recipe)
    return parse(TrainArguments, rest, f"hardfast train {name}", default=default)


def run_train(argv: Sequence[str]) -> int:
    """hardfast train RECIPE --out DIR [overrides]"""
    asked = train_arguments(argv)
    outcome = train(asked.recipe, asked.out, device=asked.device, save_minutes=asked.save_minutes)
    if outcome.stopped:
        raise Stopped(f"stopped on request; everything is saved in {outcome.folder}, the same command resumes")
    if asked.evaluate and (outcome.trained or not _evaluated(RunFolder(outcome.folder))):
        with broken_off(f"stopped on request; {outcome.folder} is trained, the same command evaluates it"):
            evaluate(
                outcome.folder,
                attacks=SHORT_EVALUATION,
                samples=SHORT_EVALUATION_SAMPLES,
                device=asked.device,
                data_root=asked.recipe.data.root,
            )
    console.line(f"done: next, `hardfast evaluate {outcome.folder} --attacks clean pgd-20 aa`")
    return DONE


def _evaluated(folder: RunFolder) -> bool:
    """Whether a finished run has been evaluated, and no short evaluation of it was broken off."""
    partial = [path for name in SHORT_EVALUATION for path in folder.path.glob(f"evaluations/partial-{name}-*")]
    return folder.evaluation.exists() and not partial


def run_evaluate_either(argv: Sequence[str]) -> int:
    """hardfast evaluate DIR | FILE [options]"""
    if argv and argv[0].startswith("-") and not {"-h", "--help"} & set(argv):
        raise UsageError(
            f"evaluate needs DIR or FILE before '{argv[0]}': name the run's folder or the weight file first"
        )
    of_weights = bool(argv) and is_weight_file(Path(argv[0]))
    return run_evaluate_weights(argv) if of_weights else run_evaluate(argv)


def run_recipes(argv: Sequence[str]) -> int:
    """hardfast recipes [NAME]"""
    if argv[:1] in (["-h"], ["--help"]):
        console.line("hardfast recipes [NAME]: the presets like the paper's tables, or everything about one of them")
    elif argv:
        _no_options(f"recipes {argv[0]}", argv[1:])
        console.line(listing.description(recipes.get(argv[0])))
    else:
        console.line(listing.listing())
    return DONE


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Finished runs side by side: those that differ in the seed alone are one row, with mean and sample deviation, and
    the paper's row under it where a run's recipe still is the paper's. Runs that are not trained or not evaluated yet
    are named with what is missing.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders of runs, or folders that hold them."""

    csv: str | None = None
    """Also write the rows to this file, with every seed's figure."""

    markdown: str | None = None
    """Also write the tables to this file, as Markdown."""


def run_compare(argv: Sequence[str]) -> int:
    """hardfast compare RUN... [--csv FILE] [--markdown FILE]"""
    asked = parse(CompareArguments, argv, "hardfast compare")
    check_places(csv=_path(asked.csv), markdown=_path(asked.markdown))
    found = [compare.read_run(path) for path in compare.find_runs(asked.runs)]
    rows = compare.rows_of([run for run in found if isinstance(run, compare.FinishedRun)])
    unready = [run for run in found if isinstance(run, compare.Unready)]
    console.line(compare_tables.terminal(rows, unready))
    if asked.csv is not None:
        compare_tables.write_csv(Path(asked.csv), rows)
    if asked.markdown is not None:
        Path(asked.markdown).write_text(compare_tables.markdown(rows, unready))
    return DONE


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Fetches, unpacks or indexes a data set where that is needed, and checks every file of it. Repeated, downloads (if
    the server can send the rest of a file) and unpacking go on where they were stopped; everything else begins anew."""

    name: Annotated[tyro.conf.Positional[DatasetName], tyro.conf.arg(metavar="NAME")]
    """Which one; see `hardfast data list`."""

    root: str = "data"
    """Folder for all data sets; this one goes to ROOT/NAME. For `folder`, the folder with your own images. Train with
    --data.root ROOT."""

    mirror: str | None = None
    """Address of a folder with the files under their published names, instead of the official one."""

    beton: bool = False
    """Also write train.beton and val.beton beside it, which the loader ffcv reads."""

    max_side: int | None = None
    """Pixels on the longer side of an image in them, at most: larger ones are scaled down, and JPEGs anew. For `folder`
    and `imagenet`."""


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """The data sets, and which of them are found under ROOT."""

    root: str = "data"
    """Folder for all data sets; `folder` is that folder itself."""


def run_data(argv: Sequence[str]) -> int:
    """hardfast data list [--root R] | prepare NAME [--root R]"""
    if argv[:1] == ["list"]:
        listed = parse(ListArguments, argv[1:], "hardfast data list")
        for name, entry in REGISTRY.items():
            place = "comes with the engine" if entry.embedded else find(name, Path(listed.root)) or "not found"
            console.line(f"{name:<14}  {entry.about} [{place}]")
        return DONE
    if argv[:1] == ["prepare"]:
        asked = parse(PrepareArguments, argv[1:], "hardfast data prepare")
        line = prepare(asked.name, Path(asked.root), mirror=asked.mirror, beton=asked.beton, max_side=asked.max_side)
        console.line(f"{asked.name}: {line}")
        return DONE
    if argv[:1] in (["-h"], ["--help"]):
        console.line("hardfast data list [--root R] | prepare NAME [--root R] [--mirror URL] [--beton] [--max-side N]")
        return DONE
    raise UsageError("data needs `list` or `prepare NAME`: for example `hardfast data prepare fashion-mnist`")


def run_bench(argv: Sequence[str]) -> int:
    """hardfast bench methods | kernels | step | train | growth | loaders | safety | machine-code"""
    from ..bench.cli import run_bench as run  # bench imports the engine, so not at the top

    run(argv)
    return DONE


@dataclass(frozen=True, kw_only=True)
class ProfileArguments:
    """Times the phases of a recipe's training step, loader included, beside what each has to compute and to move.

    Units are operations over those of a forward pass of the classifier. The floor is the time that the convolutions,
    matrix products and our own kernels need at the peak rate and the bandwidth measured on the spot, with everything
    else fused into them.
    """

    steps: int | None = None
    """Steps of each kind (ordinary, and updating the generator) that are timed; by default 50 on a GPU, 20 on a CPU."""

    trace: str | None = None
    """Also write a Chrome trace of a few more steps to this file, with the phases as ranges; open it in Perfetto. The
    replay of a captured graph shows no ranges, neither here nor in nsys (NVTX): use --execution.mode compiled there."""

    csv: str | None = None
    """Also write the rows to this file, those of each kind of step as well: times, counts, device and versions."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    png: str | None = None
    """Also draw the table into this file; needs matplotlib."""

    method: Annotated[str, METHOD] = "fgsm-sdi"
    """Profile another method than the recipe's, with the default options of its own."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def run_profile(argv: Sequence[str]) -> int:
    """hardfast profile RECIPE [overrides]"""
    from ..bench.profile import profile_step  # bench imports the engine, so not at the top

    name, rest = recipe_name("profile", argv)
    recipe = _with_method(recipes.get(name), rest)
    default = ProfileArguments(method=recipe.method.name, recipe=recipe)
    asked = parse(ProfileArguments, rest, f"hardfast profile {name}", default=default)
    report = profile_step(
        asked.recipe,
        device=asked.device,
        steps=asked.steps,
        trace=_path(asked.trace),
        csv=_path(asked.csv),
        json=_path(asked.json),
        png=_path(asked.png),
    )
    console.line()
    console.line(report)
    return DONE


def _path(word: str | None) -> Path | None:
    return None if word is None else Path(word)


def _with_method(recipe: Recipe, argv: Sequence[str]) -> Recipe:
    """The recipe with the method that `--method` names: it decides which other options there are.

    Raises:
        UsageError: it names two, or none that there is.
    """
    wanted = _values_of("--method", argv)
    if len(set(wanted)) > 1:
        raise UsageError(f"--method is given twice, as {wanted[0]} and {wanted[-1]}: give it once")
    if not wanted or wanted[0] == recipe.method.name:
        return recipe
    return replace(recipe, method=method_options(wanted[0]))


def _values_of(flag: str, argv: Sequence[str]) -> list[str]:
    """The words after each `flag`, or behind its equals sign."""
    separate = [value for word, value in pairwise(argv) if word == flag]
    return separate + [word.removeprefix(f"{flag}=") for word in argv if word.startswith(f"{flag}=")]


def _no_options(command: str, argv: Sequence[str]) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"{command} takes no '{argv[0]}': run `hardfast {command}` alone")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "recipes": run_recipes,
    "train": run_train,
    "evaluate": run_evaluate_either,
    "compare": run_compare,
    "data": run_data,
    "profile": run_profile,
    "bench": run_bench,
}


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; wrong use is one line on stderr."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.line(HELP)
        return DONE if argv else WRONG_USE
    if argv[0] == "--version":
        console.line(own_version())
        return DONE
    try:
        if argv[0] not in COMMANDS:
            raise UsageError(f"'{argv[0]}' is not a command: choose one of {', '.join(COMMANDS)}")
        return COMMANDS[argv[0]](list(argv[1:]))
    except LoaderDied as error:
        console.error(f"hardfast: {error}")
        return STOPPED
    except (UsageError, DataError, EvaluationError) as error:
        console.error(f"hardfast: {error}")
        return WRONG_USE
    except Stopped as stopped:
        console.line(str(stopped))
        return STOPPED
    except BrokenPipeError:  # the reader of our output left, like `| head`; what was done is on disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_USE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
        advice = "free space or choose another place" if full else "check the path"
        console.error(f"hardfast: {place}{error.strerror or error}: {advice}, then repeat the command")
        return WRONG_USE
    except StoppedByGuard as error:
        console.error(f"hardfast: {error}")
        return GUARD
    except KeyboardInterrupt:
        console.error("hardfast: interrupted; a run keeps its last whole checkpoint, and `hardfast train` resumes it")
        return INTERRUPTED


def main() -> None:
    """The entry point of the command."""
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends, Ctrl-C needs no traceback
    sys.exit(code)
