"""Random configurations: options read off the dataclasses, with values that are right, wrong by type, or extreme.

A new option is fuzzed by itself: its type says what is wrong for it, and its default is right. `SMALL` has ranges in
which a step takes milliseconds, for those options that decide what it costs; `FREE` names the few that any number is
right for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hardfast.engine.markers import HIDDEN
from hardfast.engine.methods import METHODS
from hardfast.engine.models import ModelOptions
from hardfast.engine.recipes import Recipe
from hardfast.engine.recipes.recipe import OptimizerOptions, StageOptions
from hardfast.engine.recipes.schedule import ScheduleOptions
from hardfast.loaders import DataOptions
from hardfast.loaders.synthetic import SyntheticShape

Values = Callable[[random.Random], Any]

SMALL: dict[str, Values] = {
    "epsilon": lambda r: f"{r.choice(['1', '8', '16.5', '60'])}/255",
    "attack_step": lambda r: r.choice([None, "2/255", "0.5/255"]),
    "epochs": lambda r: r.randint(1, 3),
    "batch_size": lambda r: r.randint(2, 4),
    "label_smoothing": lambda r: r.choice([0.0, 0.1, 0.9]),
    "weight_average": lambda r: r.choice([None, 0.5, 0.9995]),
    "crop_padding": lambda r: r.randint(0, 3),
    "crop_scale": lambda r: r.choice([None, (0.08, 1.0), (0.5, 0.5)]),
    "seed": lambda r: r.randrange(1 << 64),
    "stages": lambda r: r.choice([(), (StageOptions(epoch=0, image_size=16, batch_size=2),)]),
    "method.k": lambda r: r.randint(1, 30),
    "method.alpha": lambda r: r.choice([None, "4/255"]),
    "method.generator_width": lambda r: r.randint(1, 8),
    "method.generator_lr": lambda r: 10 ** r.uniform(-6, -1),
    "method.steps": lambda r: r.randint(1, 3),
    "method.replays": lambda r: r.randint(1, 3),
    "method.checkpoints": lambda r: r.randint(1, 4),
    "method.reset_every": lambda r: r.randint(1, 50),
    "method.noise": lambda r: r.uniform(0, 3),
    "data.name": lambda r: r.choice(["synthetic", "synthetic", "synthetic", "digits"]),
    "data.image_size": lambda r: r.choice([8, 16]),
    "data.heldout": lambda r: r.choice([None, 1, 4]),
    "data.split_seed": lambda r: r.randrange(1 << 64),
    "data.synthetic.train_images": lambda r: r.randint(12, 20),
    "data.synthetic.test_images": lambda r: r.randint(1, 6),
    "data.synthetic.channels": lambda r: r.choice([1, 3]),
    "data.synthetic.num_classes": lambda r: r.randint(2, 12),
    "loader.workers": lambda r: r.choice([None, 0, 2]),
    "model.name": lambda r: r.choice(["resnet8"] * 8 + ["preact_resnet18", "resnet18"]),
    "model.mean": lambda r: r.choice([None, (0.5, 0.4, 0.3), (0.2,)]),
    "model.std": lambda r: r.choice([None, (0.2, 0.3, 1.0), (0.2,)]),
    "optimizer.lr": lambda r: 10 ** r.uniform(-6, 0),
    "schedule.milestones": lambda r: r.choice([(), (1,), (1, 2)]),
    "schedule.knots": lambda r: r.choice([(), ((0.0, 0.0), (1.0, 1.0), (3.0, 0.1))]),
    "schedule.peak": lambda r: r.uniform(0.01, 0.99),
    "execution.mode": lambda r: r.choice(["auto", "eager"]),  # compiling takes seconds: `NOT_HERE`
    "execution.precision": lambda r: r.choice(["fp32", "fp32", "bf16"]),
    "save_minutes": lambda r: r.choice([0.0, 10.0]),
    "device": lambda r: r.choice(["auto", "cpu"]),
}
FREE = {"seed", "data.split_seed", "method.k", "method.reset_every", "data.heldout", "data.image_size"}
"""Whole numbers for which a large one is right, or is refused by the data set alone."""
UNBOUNDED = {"loader.resident_limit", "save_minutes"}
"""Numbers that may be as large as they like: nothing is computed with them."""
SIGNED = {"model.mean"}
PIXELS = {"epsilon", "attack_step", "method.alpha"}
"""Texts of the form 8/255."""
ANY_TEXT = {"data.root", "root", "data_root", "mirror"}
"""Texts that anything is right for, as far as the options know."""
NOT_HERE = {"execution.mode": ("compiled", "captured", "captured-eager")}
"""Right values that a step on a CPU cannot or need not show: C++ compilations, and CUDA graphs."""

NO_NUMBERS = ("many", "", " ", "1,5", "0x10", "--", "٣x", "8/255", "None1", "True", "💥", "x" * 300, "9" * 4000 + "!")
NO_WHOLE = (*NO_NUMBERS, "1.5", "1e3", "nan", "inf", "-1", "9" * 5000, str(10**18), str(-(10**30)))
NO_FLOAT = (*NO_NUMBERS, "nan", "-inf", "inf", "1e999", "-0.5", "1e300")
NO_CHOICE = ("nonsense", "", "AUTO ", "x" * 3000, "auto,eager", "été", "-1", "💥")
NO_PIXELS = ("8", "0.03", "8/256", "-8/255", "300/255", "nan/255", "8/255px", "", "/255", "٨/255", "1" * 5000 + "/255")
NO_TEXT = ("", "a\0b", "x" * 5000)
NO_OBJECTS: tuple[Any, ...] = (object(), {"a": 1}, [1], b"8/255", 10**5000, -(10**400), 1j, {1}, math.nan, "a\0b")


@dataclass(frozen=True)
class Option:
    """A leaf of the tree of options."""

    key: str  # dotted, as the fields are called
    kind: Any  # its annotation
    default: Any

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.key.replace("_", "-")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The members of a union, or the kind itself."""
        return get_args(self.kind) if get_origin(self.kind) in (Union, UnionType) else (self.kind,)

    def right(self, r: random.Random) -> Any:
        """A value that suits it: small where that decides the cost."""
        if self.key in SMALL:
            return SMALL[self.key](r)
        kind = self.kinds[0]
        if kind is bool:
            return r.random() < 0.5
        if get_origin(kind) is Literal:
            return r.choice(get_args(kind))
        return self.default

    def words(self, value: Any) -> list[str]:
        """A value as it is typed."""
        if isinstance(value, bool):
            head, _, last = self.flag.rpartition("." if "." in self.flag else "--")
            dot = "." if "." in self.flag else "--"
            return [self.flag if value else f"{head}{dot}no-{last}"]
        return [self.flag, *_flat(value)]

    def wrong_words(self, r: random.Random) -> list[str]:
        """Words for it that must be refused; they may be none, and a switch takes one that it does not want."""
        if any(kind is bool for kind in self.kinds):
            return [self.flag, r.choice(["True", "yes", "0"])]
        if r.random() < 0.08 and not any(Ellipsis in get_args(kind) for kind in self.kinds):
            return [self.flag]  # its value is missing: the last words of the command
        return [self.flag, *self._wrong_word(r)]

    def _wrong_word(self, r: random.Random) -> list[str]:
        kind = next(kind for kind in self.kinds if kind is not NoneType)
        if self.key in PIXELS:
            return [r.choice(NO_PIXELS)]
        if get_origin(kind) is Literal:
            return [r.choice(NO_CHOICE)]
        if get_origin(kind) is tuple:
            return [*r.choice([["a"], ["0.1", "b"], ["nan", "nan", "nan"], ["", "1", "1"], ["1"] * 40 + ["?"]])]
        if kind is int:
            return [r.choice([word for word in NO_WHOLE if self.key not in FREE or word != str(10**18)])]
        if kind is float:
            free = self.key in SIGNED or self.key in UNBOUNDED
            return [r.choice([word for word in NO_FLOAT if not free or word != "1e300"])]
        return [r.choice(_without_empty(self.key) if self.key in ANY_TEXT else NO_CHOICE)]

    def extreme(self, r: random.Random) -> Any:
        """A number of any size where it takes one, of which some are right; sizes of nets and images stay small or
        become absurd, since what lies between fits no test."""
        kind = next(kind for kind in self.kinds if kind is not NoneType)
        if kind is int:
            return r.choice([-(10 ** r.randint(0, 18)), 0, 1, 10 ** r.randint(9, 19), self.right(r)])
        if kind is float:
            return r.choice([1, 1, -1]) * 10 ** r.uniform(-320, 308)
        if get_origin(kind) is tuple and get_args(kind)[0] is float:
            return tuple(10 ** r.uniform(-320, 308) for _ in range(r.choice([1, 2, 3])))
        return self.right(r)

    def wrong_object(self, r: random.Random) -> Any:
        """Something of another type, as Python or JSON could hold it."""
        kinds = self.kinds
        wrong = list(NO_OBJECTS)
        if float in kinds:
            wrong += ["0.1", True, math.inf, -math.inf]
        elif int in kinds:
            wrong += ["3", True, 1.5, 2.0, math.inf]
        elif bool in kinds:
            wrong += ["true", 1, 0, 0.0]
        else:
            wrong += [3, 1.5, True, ["8/255"], ("8/255", 1, object()), "x" * 5000]
        if NoneType not in kinds:
            wrong.append(None)
        return r.choice(wrong)


def options_of(kind: type, prefix: str = "") -> Iterator[Option]:
    """The leaves under a dataclass; those that are not offered to users are left out."""
    hints = get_type_hints(kind, include_extras=True)
    plain = get_type_hints(kind)
    for field in fields(kind):
        if HIDDEN in getattr(hints[field.name], "__metadata__", ()):
            continue
        inner = plain[field.name]
        if is_dataclass(inner):
            yield from options_of(inner, f"{prefix}{field.name}.")
        elif field.name != "method":
            yield Option(prefix + field.name, inner, field.default)


def recipe_options(method: str) -> list[Option]:
    """All options of a recipe with one method."""
    return [*options_of(Recipe), *options_of(METHODS[method], "method.")]


def tiny(method: str) -> Recipe:
    """Of which a step takes milliseconds."""
    options = METHODS[method]()
    names = {field.name for field in fields(options)}
    small = {"generator_width": 4, "steps": 2, "replays": 2}
    return Recipe(
        name="tiny",
        epochs=3,
        batch_size=4,
        crop_padding=2,
        method=replace(options, **{name: value for name, value in small.items() if name in names}),
        data=DataOptions(
            name="synthetic", image_size=8, heldout=4, synthetic=SyntheticShape(train_images=16, test_images=4)
        ),
        model=ModelOptions(name="resnet8"),
        optimizer=OptimizerOptions(lr=0.1),
        schedule=ScheduleOptions(),
    )


def with_value(options: Any, key: str, value: Any) -> Any:
    """The options with one leaf of another value, made through `dataclasses.replace` at every level."""
    head, _, rest = key.partition(".")
    return replace(options, **{head: with_value(getattr(options, head), rest, value) if rest else value})


def _without_empty(key: str) -> tuple[str, ...]:
    """Wrong texts; only the options know that data.root must not be empty."""
    return NO_TEXT if key == "data.root" else NO_TEXT[1:]


def _flat(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return [word for one in value for word in _flat(one)]
    return [str(value)]
