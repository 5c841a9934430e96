"""The files that results are written to, wherever the user wants them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .errors import UsageError


def check_places(**files: Path | None) -> None:
    """Makes the folders of the files that options name; what cannot be written fails now, not after all the work.

    Raises:
        UsageError: a file cannot be written.
    """
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"--{option} {path} is a folder: name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(f"--{option} {path} cannot be written ({error.strerror}): choose another folder") from None
