"""Files that a config.json must not be: a recipe's own JSON with one thing wrong in it."""

from __future__ import annotations

import json
import random
from typing import Any

from hardfast.engine.methods import METHODS
from hardfast.engine.recipes import to_json
from hardfast.loaders.option_types import LONGEST_SHOWN

from .configurations import Option, recipe_options, tiny

NO_NUMBERS = ("9" * 5000, "-" + "9" * 400, "NaN", "-Infinity", "1e999", "01", "+1", "0x1", "1_0")
NO_OBJECTS = ("", "null", "[]", "3", '"x"', "{'a': 1}", "{", "epochs: 3")
OUT_OF_RANGE: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("epsilon", ("300/255", "", "8")),
    ("attack_step", ("1",)),
    ("epochs", (0, 10**18)),
    ("batch_size", (1,)),
    ("seed", (-1, 2**64)),
    ("label_smoothing", (1.0,)),
    ("weight_average", (1.0,)),
    ("crop_padding", (-1,)),
    ("optimizer.lr", (0.0, -1e300, 1e300)),
    ("optimizer.momentum", (1.0,)),
    ("optimizer.weight_decay", (-1.0, 1e300)),
    ("schedule.peak", (1.0,)),
    ("schedule.gamma", (0.0,)),
    ("schedule.milestones", ([2, 1], [1, 99])),
    ("schedule.knots", ([[0, 1]],)),
    ("loader.workers", (-1, 10**6)),
    ("loader.watchdog", (0.0, 1e300)),
    ("loader.resident_limit", (-1.0,)),
    ("data.root", ("", "a\0b")),
    ("data.image_size", (0, 10**9)),
    ("data.split_seed", (-1,)),
    ("data.test_crop", (0.0,)),
    ("data.synthetic.channels", (0,)),
    ("data.synthetic.train_images", (10**12,)),
    ("data.synthetic.num_classes", (10**9,)),
    ("model.name", ("resnet19", "")),
    ("model.std", ([0.0],)),
    ("model.mean", ([1e300],)),
    ("model.final_bn", (False,)),
)


IN_THE_TREE = {"type": 30, "null": 5, "missing": 15, "unknown": 12, "range": 10, "nested": 6}
IN_THE_TEXT = {"twice": 6, "deep": 3, "number": 5, "text": 5, "encoding": 3}


def broken_json(r: random.Random) -> tuple[str, bytes, list[str]]:
    """(kind of mistake, the file's bytes, what the answer must name one of)"""
    recipe = tiny(r.choice(tuple(METHODS)))
    tree = json.loads(to_json(recipe))
    option = r.choice(recipe_options(recipe.method.name))
    weights = IN_THE_TREE | IN_THE_TEXT
    kind = r.choices(list(weights), list(weights.values()))[0]
    if kind in IN_THE_TREE:
        named = _break_tree(r, kind, tree, option)
        return kind, json.dumps(tree, indent=r.choice([None, 2]), ensure_ascii=r.random() < 0.5).encode(), named
    return kind, *_broken_text(r, kind, tree, option)


def _inner(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The object that holds a leaf, and the leaf's name in it."""
    *path, last = key.split(".")
    for part in path:
        tree = tree[part]
    return tree, last


def _break_tree(r: random.Random, kind: str, tree: dict[str, Any], option: Option) -> list[str]:
    inner, last = _inner(tree, option.key)
    of_method = f"method.{tree['method']['name']}"
    if kind == "type":
        inner[last] = _wrong_for_json(r, option)
    elif kind == "null" and type(None) not in option.kinds:
        inner[last] = None
    elif kind in ("missing", "null"):
        del inner[last]
    elif kind == "unknown":
        name = r.choice(["epoch", "learning rate", "💥", "a\nb", "", "x" * 3000, "__class__", "Epochs", last + "s"])
        inner[name] = inner[last]
        group = option.key.rpartition(".")[0]
        first = name.partition("\n")[0][: LONGEST_SHOWN - 1]
        groups = [group, of_method]
        return [first, *(f"{one}.{first}" for one in groups)] if first else [group or "config.json", *groups]
    elif kind == "range":
        key, values = r.choice(OUT_OF_RANGE)
        inner, last = _inner(tree, key)
        inner[last] = r.choice(values)
        return [key, last]
    else:
        head = r.choice(["data", "loader", "model", "optimizer", "schedule", "execution", "method"])
        tree[head] = r.choice([[], "digits", 3, None, {}, [tree[head]], {"name": "nonsense"}, {"name": [1]}])
        return [head]
    return [last, option.key, f"{of_method}.{last}"]


def _broken_text(r: random.Random, kind: str, tree: dict[str, Any], option: Option) -> tuple[bytes, list[str]]:
    text = json.dumps(tree)
    if kind == "twice":
        inner, last = _inner(tree, option.key)
        pair = f'"{last}": {json.dumps(inner[last])}'
        return text.replace(pair, f"{pair}, {pair}").encode(), [last]
    if kind == "deep":
        opening, closing = r.choice([("[", "]"), ('{"a":', "}")])
        depth = r.choice([100, 3000, 200_000])
        nested = opening * depth + "1" + closing * depth
        return json.dumps(tree | {"epochs": "HERE"}).replace('"HERE"', nested).encode(), ["epochs", "config.json"]
    if kind == "number":
        key = r.choice(["epochs", "seed", "label_smoothing"])
        broken = json.dumps(tree | {key: "HERE"}).replace('"HERE"', r.choice(NO_NUMBERS))
        return broken.encode(), [key, "config.json"]
    raw = text.encode()
    if kind == "text":
        damaged = [text[: r.randrange(len(text))], text + "}", text + text, "\0" + text, *NO_OBJECTS]
        return r.choice(damaged).encode(), ["config.json"]
    utf16, bom, latin1 = text.encode("utf-16"), b"\xef\xbb\xbf" + raw, raw.replace(b"tiny", b"t\xe9ny")
    return r.choice([utf16, bom, latin1, b"\xff\xfe" + raw, raw[:40] + b"\x80" + raw[40:]]), ["config.json"]


def _wrong_for_json(r: random.Random, option: Option) -> Any:
    while True:
        value = option.wrong_object(r)
        try:
            value = json.loads(json.dumps(value))
        except (TypeError, ValueError):  # no JSON, or a number of too many digits: `number` has these
            continue
        if isinstance(value, list) and any("tuple" in str(kind) for kind in option.kinds):
            continue  # a tuple's own form: what is in it is wrong in `range`
        return value
