"""What the code of this repository must not do, found in its syntax trees: what runs or trusts the words of a file.

Names are followed through the imports of a module, so that `from os import system as go` is seen for what it is.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

UNSAFE_MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"),
    *("torch.package", "runpy", "code", "pty"),
}
EXECUTORS = {"eval", "exec", "compile"}  # the built-in ones; a net's eval() and torch.compile() are methods
SHELLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "commands.getoutput"),
}
UNSAFE_CALLS = {
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp"),
    *("torch.jit.load", "torch.hub.load", "pandas.read_pickle", "joblib.load"),
}
IMPORTERS = {"__import__", "importlib.import_module", "importlib.__import__"}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that must not be."""

    line: int
    rule: str
    inside: str  # the function that it is in, "" outside of any


def findings(source: str) -> list[Finding]:
    """Everything that a module must not do, in the order of its lines."""
    tree = ast.parse(source)
    known = _imported(tree)
    return sorted(
        Finding(node.lineno, rule, inside)
        for node, inside in _with_functions(tree, "")
        for rule, broken in RULES.items()
        if broken(node, known)
    )


def _with_functions(node: ast.AST, inside: str) -> Iterator[tuple[ast.expr | ast.stmt | ast.excepthandler, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr | ast.stmt | ast.excepthandler):
            yield child, inside
        name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        yield from _with_functions(child, name)


def _imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, in full."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.partition(".")[0]
                known[name.asname or first] = name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return known


def _called(node: ast.AST, known: dict[str, str]) -> str:
    """The full name of what is called; the last part alone where it is a method of a value; "" if nothing is."""
    if not isinstance(node, ast.Call):
        return ""
    parts, place = [], node.func
    while isinstance(place, ast.Attribute):
        parts.append(place.attr)
        place = place.value
    if not isinstance(place, ast.Name):
        return f"?.{parts[0]}" if parts else ""
    return ".".join([known.get(place.id, place.id), *reversed(parts)]).removeprefix("builtins.")


def _given(node: ast.AST, name: str) -> ast.expr | None:
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == name), None)


def _is(value: ast.expr | None, literal: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is literal


def _imports_unsafe(node: ast.AST, known: dict[str, str]) -> bool:
    if isinstance(node, ast.Import):
        names = [name.name for name in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
    else:
        return False
    return any(name in UNSAFE_MODULES or name.partition(".")[0] in UNSAFE_MODULES for name in names)


def _loads_code(node: ast.AST, known: dict[str, str]) -> bool:
    loads = _called(node, known) in ("torch.load", "torch.serialization.load")
    return loads and not _is(_given(node, "weights_only"), True)


def _allows_pickles(node: ast.AST, known: dict[str, str]) -> bool:
    value = _given(node, "allow_pickle")
    return value is not None and not _is(value, False)


def _spreads_options(node: ast.AST, known: dict[str, str]) -> bool:
    """np.load(**options) may allow pickles."""
    spread = isinstance(node, ast.Call) and any(keyword.arg is None for keyword in node.keywords)
    return spread and _called(node, known) in ("numpy.load", "torch.load", "subprocess.run", "subprocess.Popen")


def _runs_shell(node: ast.AST, known: dict[str, str]) -> bool:
    value = _given(node, "shell")
    return _called(node, known) in SHELLS or (value is not None and not _is(value, False))


def _extracts_anything(node: ast.AST, known: dict[str, str]) -> bool:
    name = _called(node, known)
    asked = (name.rpartition(".")[2] in ("extractall", "extract") and "." in name) or name == "shutil.unpack_archive"
    return asked and not _is_data(_given(node, "filter"))


def _is_data(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value == "data"


def _loads_loosely(node: ast.AST, known: dict[str, str]) -> bool:
    if _called(node, known).rpartition(".")[2] != "load_state_dict" or not isinstance(node, ast.Call):
        return False
    value = _given(node, "strict") or (node.args[1] if len(node.args) > 1 else None)
    return value is not None and not _is(value, True)


def _imports_by_name(node: ast.AST, known: dict[str, str]) -> bool:
    if not isinstance(node, ast.Call) or _called(node, known) not in IMPORTERS:
        return False
    return not node.args or not isinstance(node.args[0], ast.Constant)


RULES: dict[str, Callable[[ast.AST, dict[str, str]], bool]] = {
    "imports what runs the words of a file": _imports_unsafe,
    "torch.load without weights_only=True": _loads_code,
    "allows pickles in arrays": _allows_pickles,
    "options that nobody sees": _spreads_options,
    "runs a text as code": lambda node, known: _called(node, known) in EXECUTORS,
    "runs a shell": _runs_shell,
    "reads or makes a file unsafely": lambda node, known: _called(node, known) in UNSAFE_CALLS,
    "extracts whatever an archive holds": _extracts_anything,
    "loads a state that does not fit": _loads_loosely,
    "catches everything": lambda node, known: isinstance(node, ast.ExceptHandler) and node.type is None,
    "imports a module by a name that it is given": _imports_by_name,
}
