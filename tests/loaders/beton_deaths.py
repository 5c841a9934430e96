"""A process that is killed, in two ways: `python beton_deaths.py JOB`, started by tests in `test_beton`.

It forks before it has any other thread. Each fork publishes a file and is killed before its first, second, third, ...
action on a file. Then it writes another file until it is killed itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hardfast.loaders.beton.origin import Origin
from hardfast.loaders.beton.publish import publish
from hardfast.loaders.beton.writer import write_beton
from hardfast.loaders.source import Place

ACTIONS = ("open", "os.remove", "os.rename")  # names of Python's audit events, which come before what they tell


def publish_until(step: int, path: Path, digest: str) -> None:
    """Publishes, and is killed before action `step`."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in ACTIONS:
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(count)
    publish(path, digest, Origin("new", None))
    os._exit(0)


def main() -> None:
    """Tells how each fork ended, in a line of JSON, and then writes."""
    job = json.loads(sys.argv[1])
    statuses = []
    for number, folder in enumerate(job["folders"]):
        if len(os.listdir("/proc/self/task")) != 1:
            raise SystemExit("a process of several threads must not be forked")
        child = os.fork()
        if child == 0:
            publish_until(number % job["steps"], Path(folder) / "train.beton", job["digest"])
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(statuses) + "\n")
    sys.stdout.flush()
    write_beton(Place("folder", job["source"]), Path(job["path"]), label="a", quiet=True, workers=1)


if __name__ == "__main__":
    main()
