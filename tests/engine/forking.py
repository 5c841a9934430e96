"""A process that has imported the engine and forks one `hardfast` after the other: each then starts in no time.

What runs in a fork is the command itself, from the parsing of its words on, in a process of its own that can be killed.
Requests and answers are a line of JSON each, on standard input and output: `argv` and `output` start one and are
answered by its `pid`; `wait`, a pid, is answered by its `code` as `subprocess` has it, null if it still runs. No answer
waits for anything.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Serves until its input ends."""
    import safetensors.torch  # noqa: F401  # all that `hardfast train` and `evaluate` import on their way
    import torch._dynamo  # noqa: F401
    import tqdm  # noqa: F401

    with suppress(ModuleNotFoundError):
        import pyautoattack  # noqa: F401

    from hardfast.engine import cli

    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"{threads} threads run, of which a fork has one: start with OMP_NUM_THREADS=1")
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            pid = os.fork()
            if pid == 0:
                _run(request["argv"], Path(request["output"]), cli)
            answer = {"pid": pid}
        else:
            found, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if found else None}
        print(json.dumps(answer), flush=True)


def _run(argv: list[str], output: Path, cli: object) -> None:
    """Becomes `hardfast ARGV`; never returns."""
    code = 1
    try:
        os.setsid()
        with output.open("wb") as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["hardfast", *argv]
        code = cli.run(argv)  # type: ignore[attr-defined]
    except BaseException:  # as the interpreter shows it where nobody catches it
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
