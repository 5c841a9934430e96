"""Wrong use of methods, models, threats and checkpoints: exit code 2, one line that names the field and the fix, and
nothing left behind. The command line runs as a user types it; `test_cli.py` has the other options,
`test_models_elsewhere.py` the nets from elsewhere, `test_weights_command.py` the weight files, and `test_stages.py` the
stages that contradict each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hardfast.engine.run_folder import RunFolder

from .conftest import EPSILON

pytest.importorskip("tyro")
from hardfast.engine import cli

DIGITS = ["train", "digits", "--out", "{out}"]
GROWING = ["train", "imagenet-fast-eps4", "--out", "{out}"]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert cli.run(words) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("hardfast: ")
    return said.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # A method that does not fit the run, or another method's option.
        (["--method", "pgdat"], ["method 'pgdat'", "choose one of", "pgd-at"]),
        (["--method", "free-at", "--attack-bn", "eval"], ["attack-bn eval", "free-at", "use auto"]),
        (["--method", "fgsm-rs", "--method.k", "20"], ["no option '--method.k': those of --method are --method.alpha"]),
        (["--method", "standard", "--method.k", "20"], ["no option '--method.k': this --method has none"]),
        (
            ["--method.m", "3"],
            ["no option '--method.m': those of --method are", " --method.generator ", " --method.k\n"],
        ),
        # Another group's option, or one without its group.
        (["--k", "3"], ["no option '--k': did you mean --method.k?"]),
        (["--lr", "0.1"], ["no option '--lr': did you mean --optimizer.lr?"]),
        (["--optimizer.milestones", "3"], ["did you mean --schedule.milestones?"]),
        (["--optimiser.lrr=1"], ["did you mean --optimizer.lr?"]),
        (["--name", "resnet8"], ["did you mean --data.name or --loader.name or --model.name?"]),
        (["--m", "3"], ["no option '--m': did you mean --method or "]),
        (["--frob", "3"], ["no option '--frob': see `hardfast train digits --help`"]),
        # Counts of nothing.
        (["--method.k", "-3"], ["method.k must be at least 1, not -3"]),
        (["--method", "free-at", "--method.replays", "0"], ["method.replays must be at least 1, not 0"]),
        (["--method", "free-at", "--method.replays", "0.5"], ["--method.replays", "0.5"]),
        (["--method", "fgsm-ckpt", "--method.checkpoints", "0"], ["method.checkpoints must be at least 1, not 0"]),
        (["--method", "pgd-at", "--method.steps", "0"], ["method.steps must be at least 1, not 0"]),
        (["--method", "fgsm-mep", "--method.reset-every", "0"], ["method.reset-every must be at least 1, not 0"]),
        # Method options out of their range.
        (["--method", "n-fgsm", "--method.noise", "-1"], ["method.noise", "from 0 on, not -1"]),
        (["--method", "n-fgsm", "--method.noise", "100"], ["n-fgsm", "lower method.noise", "epsilon"]),
        (["--method", "fgsm-2step", "--method.first", "0"], ["method.first", "positive", "not 0"]),
        (["--method", "fgsm-ga", "--method.weight", "-1"], ["method.weight", "from 0 on", "not -1"]),
        (["--method", "fgsm-ga", "--method.through", "neither"], ["--method.through", "noisy", "both"]),
        (["--method", "fgsm-mep", "--method.momentum", "1"], ["method.momentum", "[0, 1)", "not 1"]),
        # Radii and steps above 1, or in another unit.
        *[(["--epsilon", text], [f"epsilon {text}", "write it like 8/255"]) for text in ("256/255", "1000/255")],
        *[
            (["--epsilon", text], [f"epsilon '{text}'", "over 255", "write it like 8/255"])
            for text in ("0.03", "8/256", "-8/255", "inf/255", "8/255px")
        ],
        (["--attack-step", "0.01"], ["attack-step '0.01'", "write it like 8/255"]),
        (["--epsilon", "0/255"], ["epsilon 0/255 attacks nothing", "above 0/255, like 8/255"]),
        (["--attack-step", "0.0/255"], ["attack-step 0.0/255 attacks nothing"]),
        (["--method.alpha", "1.25"], ["method.alpha '1.25'", "write it like 8/255"]),
        (["--method", "fgsm-rs", "--method.alpha", "400/255"], ["method.alpha 400/255", "write it like 8/255"]),
        # Averages of nothing, and of the present alone.
        *[(["--weight-average", text], ["weight-average", "between 0 and 1"]) for text in ("0", "1", "1.5")],
        # Models that there are not.
        (["--model.name", "timm:"], ["model.name 'timm:'", "timm:NAME"]),
        (["--model.name", "../net"], ["model.name '../net'", "package.module:factory"]),
        (["--model.name", "resnet18", "--model.no-final-bn"], ["model.final-bn", "preact_resnet18 only"]),
        # A data set whose licence forbids fetching it.
        (["--data.name", "imagenet"], ["imagenet was not found", "register at", "hardfast data prepare imagenet"]),
    ],
)
def test_wrong_training(words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, [word.format(out=tmp_path / "run") for word in DIGITS] + words)
    for part in parts:
        assert part in said
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--epochs", "10"], ["stages begin at epochs [0, 6, 12]", "before --epochs 10"]),
        (["--stages.1.image-size", "0"], ["stages.image-size must be at least 1, not 0"]),
        (["--stages.1.batch-size", "1"], ["stages.batch-size must be at least 2, not 1"]),
    ],
)
def test_wrong_stages(words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, [word.format(out=tmp_path / "run") for word in GROWING] + words)
    for part in parts:
        assert part in said
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_checkpoint_of_another_architecture(
    command: str, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder whose config.json names another net than its checkpoints hold."""
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    text = (run / "config.json").read_text()
    assert '"resnet8"' in text
    (run / "config.json").write_text(text.replace('"resnet8"', '"resnet18"'))
    words = ["evaluate", str(run)]
    if command == "train":
        small = ["--epochs", "4", "--epsilon", EPSILON, "--crop-padding", "0", "--data.image-size", "8"]
        words = ["train", "digits", "--out", str(run), *small, "--model.name", "resnet18"]
    said = refused(capsys, words)
    for part in (str(run / "checkpoints"), "'conv1.weight'", "(16, 3, 3, 3)", "(64, 3, 3, 3)", "config.json"):
        assert part in said


def test_a_run_of_another_architecture(quick_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming with another --model.name: the run is named by its first difference, and stays as it was."""
    small = ["--epochs", "4", "--epsilon", EPSILON, "--crop-padding", "0", "--data.image-size", "8"]
    said = refused(capsys, ["train", "digits", "--out", str(quick_run), *small, "--model.name", "resnet18"])
    assert "model.name is resnet8, yours resnet18" in said
    assert "choose another --out" in said
    assert RunFolder(quick_run).recipe().model.name == "resnet8"
