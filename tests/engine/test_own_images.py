"""A user's own image folder trains from the command line alone, resident and streamed, at every size a recipe names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("PIL")
pytest.importorskip("torchvision")
pytest.importorskip("nvidia.dali")
from hardfast.engine import cli, load_model, recipes
from hardfast.engine.recipes.recipe import StageOptions
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import DataOptions, LoaderDied, LoaderOptions, Order, open_dataset

from ..loaders.sources import write_folder

SMALL = ("--method", "fgsm-rs", "--epochs", "2", "--data.name", "folder")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several sizes in three classes."""
    root = tmp_path_factory.mktemp("own")
    write_folder(root, 48, kind="jpg")
    write_folder(root, 9, kind="jpg", split="val")
    return root


def trained(out: Path, images: Path, *more: str) -> None:
    words = ["train", "digits", "--out", str(out), *SMALL, "--batch-size", "16", "--data.root", str(images), *more]
    assert cli.run(words) == 0
    *_, start = json.loads((out / "environment.json").read_text())["starts"]
    assert start["numerics"]["loader"] == "resident"


def test_streamed_and_at_growing_resolution(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ["--stages.0.epoch", "0", "--stages.0.image-size", "24", "--stages.0.batch-size", "16"]
    more = ["--loader.name", "torch", "--loader.workers", "0", "--crop-padding", "0", "--crop-scale", "0.3", "1"]
    words = [
        "train",
        "fashion-mnist-resnet8",
        "--out",
        str(tmp_path / "run"),
        *SMALL,
        "--batch-size",
        "16",
        "--data.root",
        str(images),
    ]
    assert cli.run([*words, *stages, *more]) == 0
    said = capsys.readouterr().out
    assert "loader torch (as asked), 0 workers" in said
    assert "48 train" not in said  # some are held out
    assert "9 test images" in said
    recipe = RunFolder(tmp_path / "run").recipe()
    assert (recipe.crop_scale, recipe.test_size) == ((0.3, 1.0), 24)
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["samples"] == 9
    assert load_model(tmp_path / "run").training is False


def test_resident_and_evaluated_elsewhere(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", images, "--data.image-size", "20")
    said = capsys.readouterr().out
    assert "loader resident (" in said
    assert "fit --loader.resident-limit" in said
    moved = tmp_path / "moved"
    images.rename(moved)
    try:
        assert cli.run(["evaluate", str(tmp_path / "run"), "--attacks", "clean"]) == 2
        assert "--data.root must name a folder" in capsys.readouterr().err
        again = ["evaluate", str(tmp_path / "run"), "--attacks", "clean", "--data-root", str(moved), "--samples", "4"]
        assert cli.run(again) == 0
    finally:
        moved.rename(images)


def test_a_damaged_image_ends_the_run_and_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is damaged after it was indexed; the same command works once it is whole again."""
    more = ["--data.image-size", "20", "--data.heldout", "3"]
    from hardfast.loaders import prepare

    prepare("folder", images)
    victim = sorted((images / "train" / "class-1").iterdir())[2]
    content = victim.read_bytes()
    victim.write_bytes(content[:-9] + bytes([content[-9] ^ 16]) + content[-8:])
    try:
        words = [
            "train",
            "digits",
            "--out",
            str(tmp_path / "run"),
            *SMALL,
            "--batch-size",
            "16",
            "--data.root",
            str(images),
            *more,
        ]
        assert cli.run(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"class-1/{victim.name}" in said
        assert "sha256" in said
        assert not (tmp_path / "run" / "config.json").exists()
    finally:
        victim.write_bytes(content)
    trained(tmp_path / "run", images, *more)


@pytest.mark.parametrize("more", [[], ["--weight-average", "0.9"]])
def test_a_run_whose_loader_fails_goes_on_to_the_bit(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image damaged in mid-epoch: what was trained until then is saved, and the rest equals a run without it."""
    images = tmp_path / "images"
    write_folder(images, 61, size=(16, 16))
    write_folder(images, 6, size=(16, 16), split="val")
    common = ["train", "digits", *SMALL, "--data.root", str(images), "--no-evaluate", "--batch-size", "6", *more]
    assert cli.run([*common, "--out", str(tmp_path / "whole")]) == 0
    whole = RunFolder(tmp_path / "whole")
    data = open_dataset(whole.recipe().data)
    first, second = (Order(samples=len(data.train), batch_size=6, seed=0).epoch(epoch) for epoch in (0, 1))
    dropped = next(sample for sample in second.flatten().flip(0) if sample not in first)
    victim = Path(data.train.source.name(int(data.train.records[dropped])))
    content = victim.read_bytes()
    streamed = [*common, "--out", str(tmp_path / "run"), "--loader.name", "dali", "--loader.workers", "1"]
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert cli.run(streamed) == 2
    finally:
        victim.write_bytes(content)
    run = RunFolder(tmp_path / "run")
    at = run.store.latest().record.at
    assert at.epoch == 1
    assert 0 < at.step < len(second), "it is not stopped in mid-epoch"
    assert cli.run(streamed) == 0
    said = capsys.readouterr().out
    assert "resuming at epoch" in said
    assert ("saved with older BatchNorm statistics" in said) == bool(more)  # the damaged image is among their batches
    ours, theirs = run.checkpoint("last").model(), whole.checkpoint("last").model()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_whose_loader_fails_at_once_can_be_repeated(tmp_path: Path) -> None:
    """Nothing is saved of a run that has made no step, with a generator that has learned nothing."""
    images = tmp_path / "images"
    write_folder(images, 24, size=(16, 16))
    write_folder(images, 6, size=(16, 16), split="val")
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8", "--no-evaluate"]
    words += ["--data.name", "folder", "--data.root", str(images), "--loader.name", "dali"]
    data = open_dataset(DataOptions(name="folder", root=str(images), image_size=16))
    first = Order(samples=len(data.train), batch_size=8, seed=0).epoch(0)[0, 0]
    victim = Path(data.train.source.name(int(data.train.records[first])))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert cli.run(words) == 2
        assert RunFolder(tmp_path / "run").store.latest() is None
    finally:
        victim.write_bytes(content)
    assert cli.run(words) == 0


def test_one_loader_for_all_stages(images: Path) -> None:
    """Chosen by the largest images: they would be too many for the device in mid-run."""
    recipe = recipes.get("fashion-mnist-resnet8")
    data = DataOptions(name="folder", root=str(images), image_size=40)
    stages = (StageOptions(epoch=0, image_size=8, batch_size=8), StageOptions(epoch=1, image_size=40, batch_size=8))
    for limit, expected in ((40, "resident"), (39, "streamed")):
        opened = open_dataset(data)
        options = LoaderOptions(resident_limit=len(opened.train) * limit**2 * 3 / 2**30)
        made = replace(recipe, data=data, epochs=2, stages=stages, loader=options)
        choice = Run(made, opened, torch.device("cpu")).loader_choice
        assert (choice.name == "resident") == (expected == "resident"), choice


def test_a_loader_that_died_is_a_stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the exit code of what can be resumed."""

    def died(argv: object) -> int:
        raise LoaderDied("the torch loader of images was killed by SIGKILL: run the same command again")

    monkeypatch.setitem(cli.COMMANDS, "train", died)
    assert cli.run(["train", "digits"]) == 75
    assert capsys.readouterr().err.startswith("hardfast: the torch loader of images was killed")
