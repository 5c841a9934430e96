"""Do the tests notice when a kernel is wrong? Plants one defect at a time and runs the tests of tests/kernels.

    python -m tests.mutants.run [--only SUBSTRING ...] [--out FILE.md] [--jobs N]

Each mutant is a copy of kernels/ with one line changed, imported as `hardfast.kernels` by a pytest process of its own;
the other subpackages are those of the checkout. The unchanged copy runs first and must pass. To save time a mutant
meets fewer random examples first, and those of `make test` only if it survives them. Exit code 0 if at least 90% of the
mutants are killed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .catalogue import CATALOGUE, Mutant

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "kernels"
TIMEOUT = 600  # seconds
WANTED = 0.9
SCREENING = 40  # examples
# The likeliest killers of a file's mutants, by name; then FIRST, then what is left, and what compiles for GPUs last.
LIKELIEST = {"philox.py": "test_philox", "projection.py": "test_projection", "checks.py": "test_bad_inputs"}
FIRST = ("test_interpreter", "test_reference", "test_operators", "test_bad_inputs")
LAST = "test_machine_code"


@dataclass(frozen=True, slots=True)
class Result:
    """How the tests ended: `killer` names what failed, and is None where everything passed."""

    killer: str | None
    seconds: float
    output: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the catalogue and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="mutants whose name, file or defect contains one of these"
    )
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time, a core each")
    options = parser.parse_args(arguments)
    chosen = {
        name: mutant
        for name, mutant in named(CATALOGUE).items()
        if any(word in f"{name} {mutant.file} {mutant.why}" for word in options.only)
    }
    if not chosen:
        parser.error(f"no mutant contains {options.only!r}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        table, killed = run(chosen, Path(folder), options.jobs)
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n")
    return 0 if killed >= WANTED * len(chosen) else 1


def named(mutants: Sequence[Mutant]) -> dict[str, Mutant]:
    """The mutants as perturb-1, perturb-2, ..."""
    names: dict[str, Mutant] = {}
    for mutant in mutants:
        stem = mutant.file.removesuffix(".py")
        names[f"{stem}-{1 + sum(other.file == mutant.file for other in names.values())}"] = mutant
    return names


def run(chosen: dict[str, Mutant], folder: Path, jobs: int) -> tuple[str, int]:
    """(Markdown table, number killed). The kernels are copied once: the checkout may be edited meanwhile."""
    original = folder / "kernels"
    shutil.copytree(ROOT / "kernels", original, ignore=shutil.ignore_patterns("__pycache__"))
    for mutant in CATALOGUE:
        planted(mutant, original)
    control = folder / "control"
    build(control, original)
    require_import(control)
    result = test(control, "", HARDFAST_EXAMPLES="300")
    if result.killer is not None:
        raise SystemExit(f"the unchanged kernels fail {result.killer}:\n{result.output}")
    rows = ["| mutant | file | why | killed by | seconds |", "|---|---|---|---|---:|"]
    rows.append(f"| control | - | nothing is changed | - | {result.seconds:.0f} |")
    killed = 0
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda name: judge(folder / name, chosen[name], original), chosen)
        for (name, mutant), result in tqdm(zip(chosen.items(), results, strict=True), total=len(chosen), unit="mutant"):
            killed += result.killer is not None
            killer = result.killer or "**SURVIVED**"
            rows.append(f"| {name} | {mutant.file} | {mutant.why} | {killer} | {result.seconds:.0f} |")
            if result.killer is None:
                tqdm.write(f"{name} survived: {mutant.why}")
    rows += ["", f"{killed} of {len(chosen)} mutants killed ({100 * killed / len(chosen):.1f}%)."]
    return "\n".join(rows), killed


def judge(tree: Path, mutant: Mutant, original: Path) -> Result:
    """Plants a mutant in a tree of its own and runs the tests on it: a few examples first, then all."""
    build(tree, original)
    (tree / "hardfast" / "kernels" / mutant.file).write_text(planted(mutant, original))
    screened = test(tree, mutant.file, HARDFAST_EXAMPLES=str(SCREENING), HARDFAST_SHRINK="0")
    result = test(tree, mutant.file) if screened.killer is None else screened
    shutil.rmtree(tree)
    return result


def planted(mutant: Mutant, kernels: Path) -> str:
    """The mutated file's text."""
    text = (kernels / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r} ({mutant.why}), not once")
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")
    return changed


def build(tree: Path, kernels: Path) -> None:
    """`hardfast` as a tree to put first on the path: its own kernels, the other subpackages of the checkout."""
    package = tree / "hardfast"
    package.mkdir(parents=True)
    shutil.copytree(kernels, package / "kernels")
    for other in ("engine", "loaders", "bench"):
        (package / other).symlink_to(ROOT / other)


def environment(tree: Path) -> dict[str, str]:
    """The tree first on the path, and nothing kept from one mutant to the next but kernels compiled from equal source.

    An editable install finds `hardfast` through a finder at the end of sys.meta_path, so after PYTHONPATH.
    """
    return os.environ | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / "hypothesis"),
        "TORCHINDUCTOR_CACHE_DIR": str(tree / "inductor"),
        "TRITON_CACHE_DIR": str(tree.parent / "triton"),
    }


def require_import(tree: Path) -> None:
    """The tree's kernels are those that a child process imports, and the checkout's engine is beside them."""
    code = (
        "import hardfast.engine, hardfast.kernels.perturb as p; print(p.__file__, hardfast.kernels.__file__, sep='\\n')"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, env=environment(tree), capture_output=True, text=True, check=True)
    wanted = [str(tree / "hardfast" / "kernels" / name) for name in ("perturb.py", "__init__.py")]
    if found.stdout.split() != wanted:
        raise SystemExit(f"a child imports {found.stdout.split()}, not {wanted}")


def test(tree: Path, file: str, **more: str) -> Result:
    """Runs tests/kernels on the tree, up to the first failure, with `more` in the environment."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
    began = time.monotonic()
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command += in_order(file)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tree) | more, start_new_session=True, **streams
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
            killer = killer_of(process.returncode, output)
        except subprocess.TimeoutExpired:
            output, killer = "", f"timeout after {TIMEOUT} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Result(killer, time.monotonic() - began, output)


def in_order(file: str) -> list[str]:
    """The test files, the likeliest killers of a mutant of `file` first."""
    first = (LIKELIEST.get(file, ""), *FIRST)

    def rank(path: Path) -> tuple[bool, int, str]:
        place = first.index(path.stem) if path.stem in first else len(first)
        return path.stem.startswith(LAST), place, path.stem

    return [str(path.relative_to(ROOT)) for path in sorted(TESTS.glob("test_*.py"), key=rank)]


def killer_of(code: int, output: str) -> str | None:
    """What failed, from pytest's exit code and summary."""
    if code == 0:
        return None
    if code < 0:
        return f"crash: {signal.Signals(-code).name}"
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/kernels/)?(\S+)", output, re.MULTILINE)
    return f"pytest's exit code {code}" if found is None else found[1]


if __name__ == "__main__":
    sys.exit(main())
