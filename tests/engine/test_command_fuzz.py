"""Random wrong words for every command but `train`: exit code 2, one line that names what is wrong, nothing written."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("pydantic")
from hardfast.bench import cli as bench
from hardfast.engine import cli
from hardfast.engine.checkpoint import MODEL
from hardfast.engine.evaluate_command import EvaluateArguments
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.weights_command import WeightsArguments

from ..night import tries
from .configurations import Option, options_of, recipe_options
from .test_configuration_fuzz import SEED, Tally, refused_line

TINY = (
    "--data.name",
    "synthetic",
    "--data.image-size",
    "8",
    "--data.synthetic.train-images",
    "20",
    "--batch-size",
    "4",
)
POSITIONAL = ("run", "runs", "name", "weights")
PLACES = ("json", "csv", "png", "trace", "markdown", "readme", "claim", "out")


@dataclass(frozen=True)
class Command:
    """A command line that is right, and the options that may be broken in it."""

    words: tuple[str, ...]
    options: tuple[Option, ...]


def options_of_command(kind: type) -> Iterator[Option]:
    """The options of a command; those of the recipe in it as they are typed."""
    for option in options_of(kind):
        if option.key not in POSITIONAL and not option.key.startswith(("recipe.", "entry.")):
            yield option


@pytest.fixture(scope="module")
def commands(quick_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Command]:
    folder = tmp_path_factory.mktemp("weights")
    weights = shutil.copy(RunFolder(quick_run).checkpoint("best").path / MODEL, folder / "net.safetensors")
    recipe = tuple(recipe_options("fgsm-sdi"))
    fitting = ("--data.name", "digits", "--data.image-size", "8", "--epsilon", "8/255", "--model.name", "resnet8")
    small = ("--images", "64", "--batch", "16", "--epochs", "1")
    wanted: list[tuple[tuple[str, ...], type, tuple[Option, ...]]] = [
        (("evaluate", str(quick_run), "--attacks", "clean", "--samples", "4"), EvaluateArguments, ()),
        (("evaluate", str(weights), *fitting, "--attacks", "clean", "--samples", "4"), WeightsArguments, ()),
        (("compare", str(quick_run)), cli.CompareArguments, ()),
        (("data", "list"), cli.ListArguments, ()),
        (("data", "prepare", "digits"), cli.PrepareArguments, ()),
        (("profile", "digits", *TINY, "--steps", "2"), cli.ProfileArguments, recipe),
        (("bench", "methods", "digits", "--out", "{out}", *TINY), bench.BenchMethodsArguments, recipe),
        (("bench", "kernels", "--shapes", "2x8", "--rounds", "2"), bench.BenchKernelsArguments, ()),
        (("bench", "step", "--model", "resnet8", "--batch", "2", "--image-size", "8"), bench.BenchStepArguments, ()),
        (("bench", "loaders", "--images", "4", "--sizes", "8"), bench.BenchLoadersArguments, ()),
        (
            ("bench", "train", "--data", "digits", *small),
            bench.BenchTrainArguments,
            (),
        ),
        (("bench", "growth", "--model", "resnet8", "--batch", "2"), bench.BenchGrowthArguments, ()),
    ]
    return [Command(words, (*options_of_command(kind), *more)) for words, kind, more in wanted]


def broken_command(r: random.Random, commands: list[Command]) -> tuple[str, list[str], list[str]]:
    """(kind of mistake, words, what the answer must name one of)"""
    if r.random() < 0.1:
        words, named = r.choice(WITHOUT_OPTIONS)
        return "command", list(words), [named]
    command = r.choice(commands)
    option = r.choice(command.options)
    words = [*command.words]
    kind = r.choices(["value", "misspelt", "twice"], [70, 20, 10])[0]
    if kind == "misspelt":
        flag = option.flag.replace(option.flag[-1], "öx")
        return kind, [*words, flag, "1"], [flag]
    if kind == "twice" and option.key in ("device", "json", "csv"):
        return kind, [*words, option.flag, "a", option.flag, "a"], [option.key]
    for place in [i for i, word in enumerate(words) if word == option.flag]:
        after = next((i for i in range(place + 1, len(words)) if words[i].startswith("--")), len(words))
        words[place:after] = []
    broken = option.wrong_words(r)
    if option.key in PLACES and len(broken) > 1:
        broken[1] = r.choice(["", "/dev/null/rows.csv", "a\0b", "x" * 5000])
    return "value", [*words, *broken], [option.key, *(broken[1:2] if option.key in PLACES else [])]


WITHOUT_OPTIONS: list[tuple[tuple[str, ...], str]] = [
    (("frobnicate",), "frobnicate"),
    (("",), "is not a command"),
    (("--frob",), "--frob"),
    (("train",), "recipe"),
    (("train", "digits19"), "digits19"),
    (("train", "💥" * 3000), "recipe"),
    (("recipes", "nonsense"), "nonsense"),
    (("recipes", "digits", "more"), "more"),
    (("recipes", "x" * 3000), "recipe"),
    (("evaluate",), "DIR"),
    (("evaluate", "/nowhere/run"), "/nowhere/run"),
    (("evaluate", ""), "out"),
    (("evaluate", "a\0b"), "first word"),
    (("evaluate", "/nowhere/net.pt", "--data.name", "digits", "--epsilon", "8/255"), "/nowhere/net.pt"),
    (("evaluate", "/nowhere/net.pt"), "--data.name"),
    (("compare",), "RUN"),
    (("compare", "/nowhere/run"), "/nowhere/run"),
    (("compare", "a\0b"), "first word"),
    (("data",), "list"),
    (("data", "prepare"), "NAME"),
    (("data", "prepare", "cifar11"), "cifar11"),
    (("data", "frob"), "prepare"),
    (("bench",), "kernels"),
    (("bench", "frob"), "kernels"),
    (("bench", "methods"), "recipe"),
    (("bench", "methods", "digits"), "--out"),
    (("profile",), "recipe"),
    (("profile", "digits19"), "digits19"),
]


def test_wrong_commands(commands: list[Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    place = tmp_path / "here"
    place.mkdir()
    for number in range(tries(100, 1000)):
        r = random.Random(f"{SEED} commands {number}")
        kind, words, named = broken_command(r, commands)
        words = [word.format(out=place / "out") if "{out}" in word else word for word in words]
        with tally.case(f"other commands: {kind}", words):
            refused_line(words, place, [re.sub(r"^--", "", name) for name in named], capsys)
    tally.close(tally.counts.total())
