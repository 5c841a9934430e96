"""What a machine needs that only trains and measures: torch, triton and numpy; of all else it says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import pytest

from hardfast.engine import environment

MISSING = (
    *("tyro", "pydantic", "tqdm", "safetensors", "matplotlib", "torchvision", "scipy", "sklearn", "PIL"),
    *("pytest", "hypothesis", "rich", "docstring_parser", "ffcv", "numba", "cv2", "nvidia", "skimage"),
)
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
NEED_MORE = {
    *("hardfast.engine.cli", "hardfast.engine.parsing", "hardfast.bench.cli"),  # tyro
    *("hardfast.engine.evaluate_command", "hardfast.engine.weights_command"),  # tyro
    "hardfast.engine.models.imagenet_resnet",  # torchvision
    "hardfast.bench.plots",  # matplotlib
    *(f"hardfast.loaders.streaming.ffcv_{name}" for name in ("backend", "decoders")),  # ffcv, numba
    "hardfast.loaders.streaming.torch_backend",  # torchvision, Pillow
}
ROOT = Path(__file__).parent.parent


def run(program: str, folder: Path, missing: Collection[str] = MISSING) -> subprocess.CompletedProcess[str]:
    """A program on a machine where some packages are missing."""
    words = [sys.executable, "-c", f"MISSING = {set(missing)}\n{WITHOUT}{textwrap.dedent(program)}"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins are missing too
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def modules() -> list[str]:
    """All modules of the package but `NEED_MORE`."""
    found = []
    for folder in ("engine", "kernels", "loaders", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = ("hardfast", *path.relative_to(ROOT).with_suffix("").parts)
            found.append(".".join(parts).removesuffix(".__init__"))
    return [name for name in found if name not in NEED_MORE]


def test_nothing_else_is_imported(tmp_path: Path) -> None:
    """All modules, a preset, a run in memory and a step of it."""
    done = run(
        f"""
        import importlib
        for name in {modules()}:
            importlib.import_module(name)
        import torch
        from dataclasses import replace
        from hardfast.engine import recipes
        from hardfast.engine.run import Run
        from hardfast.loaders import DataOptions, open_dataset

        recipe = recipes.get("digits")
        recipe = replace(recipe, data=DataOptions(name="synthetic", image_size=8), crop_padding=0)
        run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
        print(len(run.loader), run.method.nets().keys())
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "generator" in done.stdout


def test_pytest_alone_finds_the_tests_of_a_gpu() -> None:
    program = """
    import pytest
    raise SystemExit(pytest.main(["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]))
    """
    missing = {*MISSING, "pytest_benchmark", "xdist", "pyautoattack"} - {"pytest"}
    done = run(program, ROOT, missing)
    assert done.returncode == 0, done.stdout
    for name in ("test_gpu.py", "kernels/test_gpu_kernels.py"):
        assert f"tests/{name}::" in done.stdout


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    program = """
    from hardfast.engine import UsageError, recipes, train
    from hardfast.engine.models import ModelOptions, NetShape, build_model
    recipe = recipes.get("digits")
    for call in (
        lambda: recipes.to_json(recipe),
        lambda: recipes.from_json("{}", "config.json"),
        lambda: train(recipe, "run"),
        lambda: build_model(ModelOptions(name="resnet50"), NetShape(num_classes=10, in_channels=3)),
    ):
        try:
            call()
        except UsageError as error:
            print(error)
    """
    done = run(program, tmp_path)
    pydantic = "reading and writing runs needs pydantic: pip install pydantic"
    safetensors = "reading and writing checkpoints needs safetensors: pip install safetensors"
    *lines, torchvision = done.stdout.splitlines()
    assert lines == [pydantic, pydantic, safetensors], done.stderr
    assert torchvision.startswith("model.name 'resnet50' needs torchvision")
    assert not list(tmp_path.iterdir())


def test_plain_lines_without_bars(tmp_path: Path) -> None:
    program = """
    from hardfast.engine import console
    with console.bar(3, "epoch 1/1", "images") as bar:
        bar.update(2)
        bar.set_postfix_str("loss 1")
        bar.reset(total=5)
        bar.set_description("again")
        console.line(f"drawn: {not bar.disable}{bar.desc}")
    console.error("what is\\nwrong")
    """
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "drawn: False\n", "what is wrong\n")


def test_a_file_is_fetched_without_bars(tmp_path: Path) -> None:
    (tmp_path / "published").write_bytes(b"1234567")
    program = """
    from pathlib import Path
    from hardfast.loaders.download import fetch
    fetch(Path("published").resolve().as_uri(), Path("copy"), check=lambda path: None)
    """
    done = run(program, tmp_path)
    assert (done.returncode, done.stderr) == (0, "fetching copy, 7 bytes\n")
    assert (tmp_path / "copy").read_bytes() == b"1234567"


def test_the_source_tree_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.own_version() == metadata.version("hardfast")

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    environment._version.cache_clear()
    try:
        assert environment.own_version() == "source tree"
    finally:
        environment._version.cache_clear()
