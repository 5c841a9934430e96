"""Fetching a published file: to a temporary name, checked by its sha256, then renamed. Nothing half-written stays."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from .cifar import CIFAR10, CIFAR100, Cifar, read_cifar
from .errors import DataError
from .fashion_mnist import FILES, URL, read_fashion_mnist, read_idx

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


def prepare(name: str, root: Path, *, mirror: str | None = None) -> str:
    """Makes a data set ready under `root`, fetching only what is missing, and opens it once to check it.

    Args:
        name: a data set of the registry.
        root: folder for all data sets; this one goes to root/name.
        mirror: address of a folder that holds the files under their published names, instead of the official one.

    Returns:
        Where the data set lies.

    Raises:
        DataError: unknown name, no connection, or a file that is not the published one.
    """
    if name == "fashion-mnist":
        return _prepare_fashion_mnist(root, mirror or URL)
    for spec in (CIFAR10, CIFAR100):
        if name == spec.name:
            return _prepare_cifar(spec, root, mirror or spec.url)
    if name in ("digits", "synthetic"):
        return "nothing to fetch: it comes with the engine"
    raise DataError(f"'{name}' is not a data set: choose one of digits, fashion-mnist, cifar10, cifar100, synthetic")


def _prepare_fashion_mnist(root: Path, address: str) -> str:
    folder = root / "fashion-mnist"
    for file in FILES.values():
        if not (folder / file.name).exists():
            fetch(f"{address}/{file.name}", folder / file.name, check=partial(read_idx, file=file))
    return read_fashion_mnist(root).source


def _prepare_cifar(spec: Cifar, root: Path, address: str) -> str:
    folder = root / spec.name
    if not (folder / spec.archive).exists() and not (folder / spec.folder).exists():
        fetch(
            f"{address}/{spec.archive}", folder / spec.archive, check=partial(check_sha256, sha256=spec.archive_sha256)
        )
    return read_cifar(spec, root).source


def fetch(url: str, target: Path, *, check: Callable[[Path], object]) -> None:
    """Downloads `url` to `target` under a temporary name, and renames it once `check(path)` has not raised.

    Raises:
        DataError: no connection, a broken transfer, or what `check` raises. The temporary file is gone then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{target.name}.tmp-", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _transfer(url, file, target.name)
            file.flush()
            os.fsync(file.fileno())
        check(part)
        part.replace(target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{url} did not give the published file: {error}") from None
        raise DataError(f"{url} could not be fetched ({error}): check the connection, or use --mirror") from None
    finally:
        part.unlink(missing_ok=True)


def _transfer(url: str, file: IO[bytes], label: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, desc=label, unit="B", unit_scale=True, disable=None) as bar:
            received = 0
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if total and received != total:
            raise OSError(f"the connection broke after {received} of {total} bytes")


def check_sha256(path: Path, *, sha256: str) -> None:
    """Raises DataError unless the file has that digest."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"sha256 is {found[:16]}..., not {sha256[:16]}...")
