"""The presets: one for every row of the paper's tables, with that row's settings; what `hardfast recipes` shows."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from hardfast.engine import recipes, train
from hardfast.engine.errors import UsageError
from hardfast.engine.methods import (
    Fgsm2StepOptions,
    FgsmCkptOptions,
    FgsmGaOptions,
    FgsmMepOptions,
    FgsmRsOptions,
    FgsmSdiOptions,
    FreeAtOptions,
    NFgsmOptions,
    Pgd2AtOptions,
    Pgd4AtOptions,
    PgdAtOptions,
    method_options,
)
from hardfast.engine.recipes.recipe import Recipe, StageOptions
from hardfast.engine.recipes.schedule import learning_rate
from hardfast.engine.tables import listing, paper

pytest.importorskip("tyro")
from hardfast.engine import cli
from hardfast.engine.parsing import parse

COMPARED = ("pgd-at", "fgsm-rs", "fgsm-ckpt", "fgsm-ga", "free-at", "fgsm-sdi")
NAMES = [
    *(f"table2-k{k}" for k in (1, 2, 10, 20, 30, 40)),
    *("table3-benign", "table3-grad", "table3-benign-grad"),
    *("table4-pgd2-at", "table4-pgd4-at", "table4-fgsm-sdi"),
    *(f"table{number}-{method}" for number in (5, 6, 7, 8, 9) for method in COMPARED),
    *(f"table10-{method}-eps{eps}" for method in ("pgd-at", "free-at", "fgsm-rs", "fgsm-sdi") for eps in (2, 4, 8)),
]


def rows_of_the_tables() -> list[dict[str, str]]:
    """The first line of each row of paper_tables.csv, in its order."""
    lines = csv.DictReader((Path(paper.__file__).parent / "paper_tables.csv").read_text().splitlines())
    return list({(line["table"], line["method"], line["eps"]): line for line in reversed(list(lines))}.values())[::-1]


ROWS = dict(zip(NAMES, rows_of_the_tables(), strict=True))
MODELS = {"resnet18": "resnet18", "wideresnet34-10": "wide_resnet34_10", "preactresnet18": "preact_resnet18"}
SCHEDULES = {
    "multistep-110": (110, "multistep", (100, 105)),
    "cyclic-30": (30, "cyclic", ()),
    "multistep-90": (90, "multistep", (30, 60)),
}


def test_every_row_has_a_recipe_and_every_table_recipe_a_row() -> None:
    tables = [name for name in recipes.PRESETS if name.startswith("table")]
    assert tables == NAMES
    assert list(paper.rows()) == NAMES


@pytest.mark.parametrize("name", ROWS)
def test_recipe_is_the_row(name: str) -> None:
    recipe, row = recipes.get(name), ROWS[name]
    assert (recipe.data.name, recipe.epsilon) == (row["dataset"], row["eps"])
    assert recipe.model.name == MODELS.get(row["model"], row["model"])
    assert (recipe.epochs, recipe.schedule.kind, recipe.schedule.milestones) == SCHEDULES[row["schedule"]]
    assert recipe.method.name == row["method"].split()[0]
    for setting in row["method"].split()[1:]:
        field, _, value = setting.partition("=")
        field = {"m": "replays", "input": "inputs"}.get(field, field)
        assert str(getattr(recipe.method, field)) == value


@pytest.mark.parametrize("name", ROWS)
def test_what_all_rows_share(name: str) -> None:
    recipe = recipes.get(name)
    released = recipe.method.name == "fgsm-sdi"
    assert recipe.box is not released  # the released code of FGSM-SDI projects onto the ball alone
    classes = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000}[recipe.data.name]
    assert recipe.label_smoothing == pytest.approx(0.1 * classes / (classes - 1) if released else 0)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay, recipe.optimizer.decay_norms) == (0.9, 5e-4, True)
    assert (recipe.weight_average, recipe.stages, recipe.select_on, recipe.seed) == (None, (), "heldout", 0)
    assert (recipe.model.mean, recipe.model.std) == (None, None)
    assert recipe.attack_mode == ("eval" if recipe.method.name == "fgsm-ckpt" else "train")
    assert recipe.model.final_bn is (recipe.model.name != "preact_resnet18")
    imagenet = recipe.data.name == "imagenet"
    assert recipe.parsed_attack_step() == (Fraction(1, 255) if imagenet else None)
    if not imagenet:
        assert (recipe.batch_size, recipe.crop_padding, recipe.flip) == (128, 4, True)
    lr = 0.1 if recipe.schedule.kind == "multistep" else 0.3 if recipe.method.name in ("fgsm-ckpt", "fgsm-ga") else 0.2
    assert (recipe.optimizer.lr, recipe.schedule.gamma, recipe.schedule.peak) == (lr, 0.1, 0.5)
    assert not recipe.schedule.cycle_momentum


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("table2-k1", FgsmSdiOptions(k=1)),
        ("table3-grad", FgsmSdiOptions(inputs="grad", k=20)),
        ("table4-pgd2-at", Pgd2AtOptions()),
        ("table4-pgd4-at", Pgd4AtOptions()),
        ("table5-pgd-at", PgdAtOptions(steps=10, alpha=None, start="uniform")),
        ("table5-fgsm-rs", FgsmRsOptions(alpha=None)),
        ("table5-fgsm-ckpt", FgsmCkptOptions(checkpoints=3)),
        ("table5-fgsm-ga", FgsmGaOptions(weight=0.2, through="noisy")),
        ("table6-free-at", FreeAtOptions(replays=8)),
        ("table8-fgsm-sdi", FgsmSdiOptions(k=20, alpha=None, generator="released", generator_lr=1e-3)),
        ("table10-free-at-eps4", FreeAtOptions(replays=4)),
        ("fastat-fgsm-ga", FgsmGaOptions(weight=0.2, alpha="8/255")),
        ("fastat-n-fgsm", NFgsmOptions(noise=2.0)),
        ("fastat-fgsm-mep", FgsmMepOptions(momentum=0.3, consistency=10.0, reset_every=40)),
    ],
)
def test_methods_have_the_options_of_their_papers(name: str, method: object) -> None:
    assert recipes.get(name).method == method


def test_wongs_recipe_for_imagenet() -> None:
    for radius in (2, 4, 8):
        fast, sdi = recipes.get(f"imagenet-fast-eps{radius}"), recipes.get(f"imagenet-fast-sdi-eps{radius}")
        assert [(s.epoch, s.image_size, s.batch_size) for s in fast.stages] == [
            (0, 128, 512),
            (6, 224, 224),
            (12, 288, 128),
        ]
        assert (fast.epochs, fast.epsilon, fast.attack_step, fast.method.name) == (
            15,
            f"{radius}/255",
            "1/255",
            "fgsm-rs",
        )
        assert (fast.optimizer.weight_decay, fast.optimizer.decay_norms) == (1e-4, False)
        assert (fast.model.name, fast.model.mean, fast.model.std) == (
            "resnet50",
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        )
        labels = {"name": sdi.name, "about": sdi.about}
        assert replace(fast, method=FgsmSdiOptions(), **labels) == sdi  # the same protocol
        rates = [
            learning_rate(fast.schedule, peak=fast.optimizer.lr, epoch=epoch, step=0, steps=100, epochs=fast.epochs)
            for epoch in (0, 1, 6, 12)
        ]
        assert rates == pytest.approx([0, 0.4, 0.04, 0.004])


def test_the_fastat_protocol() -> None:
    found = [name for name in recipes.PRESETS if name.startswith("fastat-")]
    methods = {"pgd-at", "fgsm-rs", "fgsm-ga", "free-at", "n-fgsm", "fgsm-mep", "fgsm-sdi"}
    assert len(found) == 3 * len(methods)
    for name in found:
        recipe = recipes.get(name)
        assert recipe.method.name in methods
        assert (recipe.epsilon, recipe.label_smoothing, recipe.weight_average) == ("8/255", 0.4, 0.9995)
        assert (recipe.schedule.kind, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("onecycle", 0.1, 5e-4)
        assert (recipe.box, recipe.select_on, recipe.batch_size) == (True, "heldout", 128)
        assert recipe.epochs == (50 if recipe.method.name == "free-at" else 100)  # its m passes over each batch
        tiny = recipe.data.name == "tiny-imagenet"
        assert (recipe.data.heldout, recipe.model.name) == ((2000, "preact_resnet18") if tiny else (1000, "resnet18"))
        assert "iteration" in recipe.about  # theirs steps the schedule once an epoch
    assert recipes.get("fastat-free-at").method == FreeAtOptions(replays=4)


def test_names_of_their_own_are_rows() -> None:
    for name, row in (("cifar10-resnet18", "table5-fgsm-sdi"), ("cifar10-resnet18-cyclic", "table7-fgsm-sdi")):
        other = recipes.get(row)
        assert replace(recipes.get(name), name=row, about=other.about, guard="warn") == other
        assert paper.row_of(name) == paper.row_of(row)


def test_what_is_compared_is_warned_of_and_what_is_wanted_goes_back() -> None:
    """A row of a table must show the collapse that its paper shows; who wants a net does not want that."""
    goes_back = {name for name, recipe in recipes.PRESETS.items() if recipe.guard == "rollback"}
    wanted = {"digits", "fashion-mnist-resnet18", "cifar10-resnet18", "cifar10-resnet18-cyclic"}
    assert goes_back == wanted | {name for name in recipes.PRESETS if name.startswith("imagenet-fast")}
    assert all(recipe.guard == "warn" for name, recipe in recipes.PRESETS.items() if name not in goes_back)


@pytest.mark.parametrize("name", recipes.PRESETS)
def test_recipes_survive_config_json(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipes.from_json(recipes.to_json(recipe), "config.json") == recipe


def test_figures_are_the_papers() -> None:
    row = paper.row_of("table5-fgsm-rs")
    assert row is not None
    assert (row.table, row.dataset, row.method, row.epsilon) == ("V", "cifar10", "fgsm-rs", "8/255")
    assert row.figures["best"] == {
        "clean": 73.81,
        "pgd-10": 42.31,
        "pgd-20": 41.55,
        "pgd-50": 41.26,
        "cw": 39.84,
        "apgd": 41.02,
        "aa": 37.07,
        "minutes": 51,
    }
    assert row.figures["last"]["aa"] == 0
    tenth = paper.row_of("table10-fgsm-sdi-eps4")
    assert tenth is not None
    assert set(tenth.figures) == {"reported"}
    assert tenth.headline["minutes"] == pytest.approx(66.8 * 60)
    assert sum(len(figures) for row in paper.rows().values() for figures in row.figures.values()) == 585


def test_the_papers_row_stands_beside_its_recipe_only() -> None:
    recipe = recipes.get("cifar10-resnet18")
    line = "paper, Table V: clean 84.86, pgd-50 52.18, aa 48.50, 83 min"
    assert paper.beside(recipe) == line
    for same in (
        replace(recipe, seed=7),
        replace(recipe, select_on="test", data=replace(recipe.data, heldout=0)),  # as the paper did
        replace(recipe, execution=replace(recipe.execution, precision="bf16")),  # the paper gives none
        replace(recipe, execution=replace(recipe.execution, tf32=False)),
        replace(recipe, data=replace(recipe.data, root="/elsewhere")),
        replace(recipe, execution=replace(recipe.execution, mode="eager")),
    ):
        assert paper.beside(same) == line
    for other, apart in (
        (replace(recipe, epochs=109), ["epochs"]),
        (replace(recipe, box=True), ["box"]),
        (replace(recipe, method=FgsmSdiOptions(k=10)), ["method.k"]),
        (replace(recipe, method=FgsmRsOptions()), ["method"]),
        (replace(recipe, name="a-name-of-my-own"), []),
        (recipes.get("digits"), []),
    ):
        assert paper.beside(other) is None
        assert paper.differing(other) == apart


def test_selecting_as_the_paper_did(tmp_path: Path, quick_recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=r"data.heldout 0 .* add --select-on test"):
        replace(quick_recipe, data=replace(quick_recipe.data, heldout=0))
    as_said = replace(quick_recipe, epochs=1, select_on="test", data=replace(quick_recipe.data, heldout=0))
    assert train(as_said, tmp_path / "run").finished
    assert "as the paper did: --data.heldout 0 --select-on test" in listing.description(recipes.get("table5-pgd-at"))
    assert "as the paper did" not in listing.description(recipes.get("digits"))


def test_methods_beyond_the_paper() -> None:
    mep, n_fgsm, two, standard = (
        recipes.get(f"cifar10-{name}") for name in ("fgsm-mep", "n-fgsm", "fgsm-2step", "standard")
    )
    assert mep.label_smoothing == pytest.approx(0.4 * 10 / 9)  # leaves 0.6 on the true class
    assert (mep.epochs, mep.schedule.milestones) == (110, (100, 105))
    assert (n_fgsm.epochs, n_fgsm.schedule.kind, n_fgsm.optimizer.lr) == (30, "cyclic", 0.2)
    sdi = recipes.get("table5-fgsm-sdi")
    assert replace(sdi, name=two.name, about=two.about, method=Fgsm2StepOptions()) == two
    assert (standard.method.name, standard.label_smoothing) == ("standard", 0)


def test_imagenet_is_cropped_at_random_scales() -> None:
    for name, recipe in recipes.PRESETS.items():
        resized = recipe.data.name == "imagenet"
        assert ("random resized crops" in recipe.about.replace("\n", " ")) is resized, name
        assert (recipe.crop_scale, recipe.crop_padding) == ((0.08, 1.0), 0) if resized else recipe.crop_scale is None


def test_importing_the_engine_builds_no_preset() -> None:
    program = "import gc, sys, hardfast.engine as e; sys.exit(any(type(one) is e.Recipe for one in gc.get_objects()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert recipes.PRESETS is recipes.PRESETS
    assert not hasattr(recipes, "NONE")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean table5-fgsm-rs"):
        recipes.get("table5-fgsmrs")
    with pytest.raises(UsageError, match="did you mean table2-k1 or table2-k2 or table2-k10"):
        recipes.get("table2")
    with pytest.raises(UsageError, match="hardfast recipes"):
        recipes.get("zzzzzz")


def test_the_listing_fits_and_reads_like_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= listing.WIDTH
    named = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()[0] in recipes.PRESETS}
    assert list(named) == list(recipes.PRESETS)
    table5 = next(line for line in lines if line.startswith("Table V:"))
    for word in ("CIFAR-10", "ResNet18", "0.1", "100 105"):
        assert word in table5
    row = named["table5-fgsm-rs"].split()
    assert row == ["table5-fgsm-rs", "fgsm-rs", "8/255", "110", "73.81", "41.26", "39.84", "37.07", "0.00", "51", "min"]
    assert "k 10" in named["table2-k10"]
    assert "label-smoothing 0.111, no box" in named["table5-fgsm-sdi"]
    assert "lr 0.3" in named["table7-fgsm-ga"]
    assert "66.8 h" in named["table10-fgsm-sdi-eps2"]


@pytest.mark.parametrize("name", recipes.PRESETS)
def test_all_about_one_recipe(name: str) -> None:
    text = listing.description(recipes.get(name))
    assert max(map(len, text.splitlines())) <= listing.WIDTH
    assert f"hardfast train {name} --out runs/{name}-0 --seed 0" in text
    assert ("The paper, Table" in text) is (paper.row_of(name) is not None)
    assert f"hardfast compare runs/{name}-[0-9]*" in text  # not those of recipes whose names go on


def test_its_commands_are_those_of_the_papers_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "table5-fgsm-sdi"]) == 0
    said = capsys.readouterr().out
    evaluate = "hardfast evaluate runs/table5-fgsm-sdi-0 --attacks clean pgd-10 pgd-20 pgd-50 cw apgd aa"
    assert f"{evaluate} --checkpoint best last" in said
    assert "51.84" in said  # apgd of the best checkpoint
    assert "51.30" in said  # and of the last one


def one_of_each() -> list[str]:
    """A preset of each data set, net, schedule and number of stages, and of each method."""
    found = {
        (one.data.name, one.model.name, one.schedule.kind, len(one.stages)): one.name
        for one in recipes.PRESETS.values()
    }
    return sorted({*found.values(), *{one.method.name: one.name for one in recipes.PRESETS.values()}.values()})


@pytest.mark.parametrize("name", one_of_each())
def test_its_options_can_be_typed(name: str) -> None:
    """Typed behind a recipe of nothing but defaults, with as many stages, they make the preset."""
    preset = recipes.get(name)
    lines = listing.description(preset).splitlines()
    begin = lines.index("It sets, where defaults differ:") + 1
    words = [word for line in lines[begin : lines.index("", begin)] for word in line.split()]
    stages = tuple(StageOptions(epoch=epoch) for epoch in range(len(preset.stages)))
    plain = Recipe(name=name, about=preset.about, method=method_options(preset.method.name), stages=stages)
    default = cli.TrainArguments(out="run", method=preset.method.name, recipe=plain)
    assert parse(cli.TrainArguments, words, "hardfast train", default=default).recipe == preset
