"""The security lint over everything that ships, and each of its rules on code that it must catch and let through."""

from __future__ import annotations

from pathlib import Path

import pytest

from .lint import RULES, findings

ROOT = Path(__file__).parent.parent
SHIPPED = [
    path for folder in ("engine", "kernels", "loaders", "bench") for path in sorted((ROOT / folder).rglob("*.py"))
]

# By file, function and rule: why it may.
ALLOWED = {
    ("engine/models/elsewhere.py", "_found", "imports a module by a name that it is given"): (
        "model.name is the user's own word for a net of theirs, package.module:factory; nothing in a checkpoint or a "
        "weight file can name a module"
    ),
    ("loaders/__init__.py", "__getattr__", "imports a module by a name that it is given"): (
        "the names are those of the package's own modules, in a table of the same file"
    ),
}

CAUGHT = {
    "imports what runs the words of a file": (
        "import pickle",
        "import torch, dill as d",
        "from marshal import loads",
        "def f():\n    from joblib import load",
        "import torch.package",
        "from torch import package",
        "import cloudpickle.cloudpickle",
    ),
    "torch.load without weights_only=True": (
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "import torch as t\nt.load(path)",
        "from torch import load as read\nread(path)",
        "from torch.serialization import load\nload(path, weights_only=1)",
    ),
    "allows pickles in arrays": (
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=trusted)",
        "np.lib.format.read_array(file, allow_pickle=1)",
    ),
    "options that nobody sees": ("import numpy as np\nnp.load(path, **options)",),
    "runs a text as code": (
        "eval(text)",
        "exec('a = 1')",
        "compile(text, 'x', 'exec')",
        "import builtins\nbuiltins.eval(text)",
        "from builtins import exec as run\nrun(text)",
    ),
    "runs a shell": (
        "import os\nos.system('ls')",
        "from os import popen as go\ngo('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "run('ls', shell=wanted)",
        "import subprocess as s\ns.getoutput('ls')",
    ),
    "reads or makes a file unsafely": (
        "import yaml\nyaml.load(text)",
        "from yaml import load\nload(text, Loader=x)",
        "import tempfile\ntempfile.mktemp()",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.hub.load('a/b', 'c')",
    ),
    "extracts whatever an archive holds": (
        "tar.extractall(folder)",
        "tarfile.open(path).extractall(folder, filter='fully_trusted')",
        "import shutil\nshutil.unpack_archive(path)",
        "tar.extract(member)",
    ),
    "loads a state that does not fit": (
        "net.load_state_dict(state, strict=False)",
        "net.load_state_dict(state, False)",
        "net.inner.load_state_dict(state, strict=wanted)",
    ),
    "catches everything": ("try:\n    f()\nexcept:\n    pass",),
    "imports a module by a name that it is given": (
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as get\nget(f'a.{name}')",
        "__import__(name)",
    ),
}
LET_THROUGH = {
    "imports what runs the words of a file": (
        "import pickletools",
        "from .pickle import x",
        "import json",
        "import zipfile",
    ),
    "torch.load without weights_only=True": (
        "import torch\ntorch.load(path, weights_only=True)",
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import json\njson.load(file)",
    ),
    "allows pickles in arrays": ("import numpy as np\nnp.load(path)", "np.load(path, allow_pickle=False)"),
    "options that nobody sees": ("import numpy as np\nnp.savez(path, **tables)", "f(**options)"),
    "runs a text as code": (
        "net.eval()",
        "import torch\ntorch.compile(f)",
        "import re\nre.compile('x')",
        "self.exec(x)",
    ),
    "runs a shell": ("import subprocess\nsubprocess.run(['ls'])", "f(shell=False)", "import os\nos.listdir()"),
    "reads or makes a file unsafely": (
        "import yaml\nyaml.safe_load(text)",
        "import tempfile\ntempfile.mkdtemp()",
        "import torch\ntorch.jit.script(f)",
    ),
    "extracts whatever an archive holds": (
        "tar.extractall(folder, filter='data')",
        "tar.extractfile(member)",
        "def extract(x):\n    return x\nextract(3)",
    ),
    "loads a state that does not fit": (
        "net.load_state_dict(state)",
        "net.load_state_dict(state, strict=True)",
        "zip(a, b, strict=False)",
    ),
    "catches everything": ("try:\n    f()\nexcept Exception:\n    pass",),
    "imports a module by a name that it is given": ("import importlib\nimportlib.import_module('json')", "import json"),
}


def found() -> dict[tuple[str, str, str], list[int]]:
    """The lines of all findings, by file, function and rule."""
    every: dict[tuple[str, str, str], list[int]] = {}
    for path in SHIPPED:
        for finding in findings(path.read_text()):
            every.setdefault((str(path.relative_to(ROOT)), finding.inside, finding.rule), []).append(finding.line)
    return every


def test_nothing_that_ships_breaks_a_rule() -> None:
    every = found()
    assert len(SHIPPED) > 100
    assert {key: lines for key, lines in every.items() if key not in ALLOWED} == {}
    assert set(ALLOWED) <= set(every), "an exception that is not needed any more"


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, some in CAUGHT.items() for source in some])
def test_each_rule_catches(rule: str, source: str) -> None:
    assert rule in {finding.rule for finding in findings(source)}


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, some in LET_THROUGH.items() for source in some])
def test_each_rule_lets_through(rule: str, source: str) -> None:
    assert rule not in {finding.rule for finding in findings(source)}


def test_each_rule_is_tried() -> None:
    assert set(CAUGHT) == set(LET_THROUGH) == set(RULES)
