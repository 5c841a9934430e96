"""A user's own image folder trains from the command line alone, resident and streamed, at every size a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("PIL")
pytest.importorskip("torchvision")
from hardfast.engine import cli, load_model
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import LoaderDied

from ..loaders.sources import write_folder

SMALL = ("--method", "fgsm-rs", "--epochs", "2", "--batch-size", "16", "--data.name", "folder")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of several sizes in three classes."""
    root = tmp_path_factory.mktemp("own")
    write_folder(root, 48, kind="jpg")
    write_folder(root, 9, kind="jpg", split="val")
    return root


def trained(out: Path, images: Path, *more: str) -> None:
    words = ["train", "digits", "--out", str(out), *SMALL, "--data.root", str(images), *more]
    assert cli.run(words) == 0
    *_, start = json.loads((out / "environment.json").read_text())["starts"]
    assert start["numerics"]["loader"] == "resident"


def test_streamed_and_at_growing_resolution(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ["--stages.0.epoch", "0", "--stages.0.image-size", "24", "--stages.0.batch-size", "16"]
    more = ["--loader.name", "torch", "--loader.workers", "0", "--crop-padding", "0", "--crop-scale", "0.3", "1"]
    words = ["train", "fashion-mnist-resnet8", "--out", str(tmp_path / "run"), *SMALL, "--data.root", str(images)]
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
        words = ["train", "digits", "--out", str(tmp_path / "run"), *SMALL, "--data.root", str(images), *more]
        assert cli.run(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"class-1/{victim.name}" in said
        assert "sha256" in said
        assert not (tmp_path / "run" / "config.json").exists()
    finally:
        victim.write_bytes(content)
    trained(tmp_path / "run", images, *more)


def test_loaders_that_died_are_errors_of_use() -> None:
    """So the command ends with one line and 2."""
    assert issubclass(LoaderDied, cli.DataError)
