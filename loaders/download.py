"""Fetching a published file: to a temporary name, checked, then renamed. Nothing half-written stays."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import DataError
from .progress import progress

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


def fetch(url: str, target: Path, *, check: Callable[[Path], object]) -> None:
    """Downloads `url` to `target` under a temporary name, and renames it once `check(path)` has not raised.

    Raises:
        DataError: no connection, a broken transfer, no place to write, or what `check` raises. The temporary file is
            gone then.
    """
    part = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            _transfer(url, file, target.name)
            file.flush()
            os.fsync(file.fileno())
        check(part)
        part.replace(target)
    except DataError as error:
        raise DataError(f"{url} did not give the published file: {error}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DataError(
            f"{url} could not be fetched to {target} ({error}): check the connection and the folder, or use --mirror"
        ) from None
    finally:
        if target.parent.is_dir():
            part.unlink(missing_ok=True)


def _transfer(url: str, file: IO[bytes], label: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        total = int(response.headers.get("Content-Length") or 0)
        plain = f"fetching {label}, {total or 'unknown number of'} bytes"
        with progress(total, label, unit="B", plain=plain) as advance:
            received = 0
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                advance(len(chunk))
        if total and received != total:
            raise OSError(f"the connection broke after {received} of {total} bytes")


def check_sha256(path: Path, *, sha256: str) -> None:
    """Raises DataError unless the file has that digest."""
    _check_digest(path, "sha256", sha256)


def check_md5(path: Path, *, md5: str) -> None:
    """Raises DataError unless the file has that digest: for files of which no better one was published."""
    _check_digest(path, "md5", md5)


def _check_digest(path: Path, kind: str, digest: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != digest:
        raise DataError(f"{kind} is {found[:16]}..., not {digest[:16]}...")
