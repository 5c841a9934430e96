"""From words to a dataclass through tyro, with each mistake as one line instead of a box."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from ..loaders.option_types import LONGEST_SHOWN, LONGEST_TEXT, shown
from .errors import UsageError

Arguments = TypeVar("Arguments")
MEANT = 3  # options that one mistake may have meant
QUOTES, DASHES = "'\"", "-\u2010\u2013\u2014"
# What tyro says of values, in the words of someone who types them.
_PLAINER = (
    (r"^Error parsing recipe[\w.]*: ", ""),
    (
        rf"(base 10: |to float: |invalid choice |from \[|arguments: \[)'([^']{{{LONGEST_SHOWN}}})[^']*('|$)",
        r"\1'\2...'",
    ),
    (r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: ", r"\1 must be a whole number, not "),
    (r"^Error parsing (--\S+): Exceeds the limit.*", r"\1 must be a whole number of fewer digits"),
    (r"^Error parsing (--\S+): could not convert string to float: ", r"\1 must be a number, not "),
    (
        r"^Error parsing (--\S+): no type matching (.+?) could be instantiated from \[(.*?)\]\. Got errors: .*",
        r"\1 must be \2, not \3",
    ),
    (r"^Error parsing (--\S+): Could not find valid parse for arguments: \[(.*?)\].*", r"\1 cannot be read from \2"),
    (r"^[Mm]issing value for argument '(--\S+)'\. Expected \d+ values?", r"\1 needs a value behind it"),
    (r"^invalid choice (.*) for argument '(--\S+)'\. Expected one of \((.*?),?\)", r"\2 must be one of \3, not \1"),
)
_CONFIG = (tyro.conf.AvoidSubcommands,)


def parse(kind: type[Arguments], argv: Sequence[str], program: str, *, default: Arguments | None = None) -> Arguments:
    """The arguments of one command; `--help` prints what the dataclass's docstrings say and exits.

    Args:
        kind: the dataclass; its field names, with dashes, are the options.
        argv: the words after the command.
        program: the command, for the help.
        default: values of the options that are not given.

    Raises:
        UsageError: an unknown option, a missing one, one that is given twice, or a value of the wrong type.
    """
    _check_words(argv)
    said = io.StringIO()
    try:
        if "-h" in argv or "--help" in argv:
            return _parse(kind, argv, program, default)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return _parse(kind, argv, program, default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue(), kind, argv, program, default)) from None


def _parse(kind: type[Arguments], argv: Sequence[str], program: str, default: Arguments | None) -> Arguments:
    if default is None:
        return tyro.cli(kind, prog=program, args=list(argv), config=_CONFIG)
    return tyro.cli(kind, prog=program, args=list(argv), config=_CONFIG, default=default)


def _check_words(argv: Sequence[str]) -> None:
    """Refuses what tyro would take in silence: an option that is given twice, of which it takes the last."""
    given: set[str] = set()
    option = "the first word"
    for word in argv:
        if word.startswith("--"):
            option = word.partition("=")[0]
            same = option.replace("_", "-").replace("--no-", "--").replace(".no-", ".")
            if same in given:
                raise UsageError(f"{shown(option).strip(QUOTES)} is given twice: give it once")
            given.add(same)
        if len(word) > LONGEST_TEXT or "\0" in word:
            raise UsageError(f"{shown(option).strip(QUOTES)}: {shown(word)} is too long, or holds NUL: check the value")


def _one_line(box: str, kind: type[Arguments], argv: Sequence[str], program: str, default: Arguments | None) -> str:
    """The cause and the fix out of tyro's box."""
    lines = [re.sub(r"[╭╮╰╯│─]", " ", line).strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= {"-", " "}]
    title, body = (lines[0], lines[1:]) if lines else ("wrong arguments", [])
    if unknown := re.search(r"Unrecognized options: (\S+?),?(?:\s|$)", " ".join(body)):
        if unknown[1][0] not in DASHES and (before := _option_before(unknown[1], argv)):
            return f"{before} takes no '{unknown[1]}': see `{program} --help`"
        return f"{program} has no option '{unknown[1]}': {_hint(unknown[1], _options(kind, program, default), program)}"
    if title.startswith("Required"):
        missing = [line.split()[0] for line in body if line.startswith("--") or line.isupper()]
        return f"{program} needs {' and '.join(missing) or 'more arguments'}: see `{program} --help`"
    ends = (i for i, line in enumerate(body) if line.startswith(("Argument help", "For full")))
    cause = " ".join(body[: next(ends, len(body))])
    for pattern, words in _PLAINER:
        cause = re.sub(pattern, words, cause)
    return f"{cause.rstrip('.')}: see `{program} --help`"


def _option_before(word: str, argv: Sequence[str]) -> str | None:
    """The option that a value too many stands behind, as it was typed; None where there is none.

    Where the same value stands behind several options, all of them: which of them takes it is tyro's to know.
    """
    options = [""]
    found = []
    for one in argv:
        if one.startswith("--"):
            options.append(one.partition("=")[0])
        elif one == word:
            found.append(options[-1])
    return " or ".join(dict.fromkeys(option for option in found if option)) or None


def _hint(unknown: str, options: Sequence[str], program: str) -> str:
    """What may have been meant by an option that there is not.

    That is the option whose last part it has, whatever its group (--lr is --optimizer.lr), or nearly has, within the
    group where it names one. Otherwise the options of that group are listed, or those that begin like it.
    """
    group, _, name = unknown.partition("=")[0].lstrip("-").rpartition(".")
    of_group = [option for option in options if group and option.startswith(f"--{group}.")]
    by_name: dict[str, list[str]] = {}
    for option in sorted(options, key=lambda option: option.count(".")):
        by_name.setdefault(_last_part(option), []).append(option)
    near = {_last_part(option): [option] for option in of_group} or by_name
    close = by_name.get(name) or [option for key in difflib.get_close_matches(name, near, n=1) for option in near[key]]
    if of_group and not close:
        return f"those of --{group} are {' '.join(of_group)}"
    if f"--{group}" in options and not close:
        return f"this --{group} has none"
    close = close or [option for key in by_name if name and key.startswith(name) for option in by_name[key]]
    if close:
        return f"did you mean {' or '.join(close[:MEANT])}?"
    return f"see `{program} --help`"


def _last_part(option: str) -> str:
    return option.removeprefix("--").rpartition(".")[2]


def _options(kind: type[Arguments], program: str, default: Arguments | None) -> list[str]:
    """All options of a command, read off its help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        _parse(kind, ["--help"], program, default)
    return sorted(set(re.findall(r"(--\w[\w.-]*\w|--\w)", said.getvalue())) - {"--help"})


def recipe_name(command: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """(the recipe, the other words); `--help` without a recipe teaches with `digits`."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if "-h" in argv or "--help" in argv:
        return "digits", list(argv)
    raise UsageError(f"{command} needs a recipe before its options, like digits: `hardfast recipes` lists them")
