"""Fetching a published file: to NAME.part, checked, then renamed. What was received is kept for the next attempt.

A transfer goes on where it broke only if the server says that the file is still the same: NAME.part.json keeps what it
called the file (its ETag or date), and If-Range asks for the rest of that very file. Where it does not say so, or sends
no parts of files at all, a broken transfer leaves nothing. The part of one address stays until another one sends its
own first bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from .errors import DataError
from .progress import progress

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
LARGEST = 4 << 30  # bytes of a file whose published size is not known
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Begun:
    """A transfer that may go on.

    Attributes:
        url: what is fetched.
        validator: what the server calls this version of the file: a strong ETag, or when it was changed.
        total: bytes of the whole file.
    """

    url: str
    validator: str
    total: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What a broken transfer has left for the next attempt: from which address, and how many bytes."""

    url: str
    received: int


def fetch(url: str, target: Path, *, check: Callable[[Path], object], largest: int = LARGEST) -> None:
    """Downloads `url` to `target` under a temporary name, and renames it once `check(path)` has not raised.

    Args:
        url: where it is.
        target: the file.
        check: told the path of what was received; raises DataError where that is not the published file.
        largest: bytes that are taken at most.

    Raises:
        DataError: no connection, a broken transfer, no place to write, another process that fetches the same file, a
            file that is too large, or what `check` raises. The temporary file is gone then, unless the next attempt can
            go on with it, or one of another address that it came from.
    """
    part, record = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            try:
                _transfer(url, file, record, target.name, largest)
                check(part)
            except BaseException as error:
                begun = _begun(record)
                if begun is None or (isinstance(error, DataError) and begun.url == url):
                    _forget(part, record)
                raise
            part.replace(target)
            record.unlink(missing_ok=True)
    except DataError as error:
        raise DataError(f"{url} did not give the published file: {error}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        kept = kept_part(target)
        goes_on = "; repeated, the command goes on from there" if kept is not None and kept.url == url else ""
        raise DataError(
            f"{url} could not be fetched to {target} ({error}): check the connection and the folder, or use --mirror"
            f"{goes_on}"
        ) from None


def kept_part(target: Path) -> Kept | None:
    """What the next attempt to fetch `target` goes on with, if it asks the same address; None if there is nothing."""
    part, record = _beside(target)
    begun = _begun(record)
    try:
        received = part.stat().st_size
    except OSError:
        return None
    return None if begun is None or not 0 < received <= begun.total else Kept(begun.url, received)


def _beside(target: Path) -> tuple[Path, Path]:
    """The temporary file, and the note about it."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The temporary file, with what is in it already; no other process writes to it meanwhile."""
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, the process that held it may have renamed it: then it is the finished file.
            same = os.path.samestat(os.fstat(file.fileno()), part.stat())
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            raise BlockingIOError(f"another process is fetching it to {part}")
        yield file


def _forget(part: Path, record: Path) -> None:
    part.unlink(missing_ok=True)
    record.unlink(missing_ok=True)


def _begun(record: Path) -> Begun | None:
    """What is known of the transfer that left NAME.part, whichever address it was of."""
    try:
        values = json.loads(record.read_text())
        found = Begun(str(values["url"]), str(values["validator"]), int(values["total"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.validator.isprintable() else None


def _transfer(url: str, file: IO[bytes], record: Path, label: str, largest: int) -> None:
    """Receives what `file` lacks, and has it on the disk.

    Raises:
        OSError: and the like, of the connection or the disk; or the connection broke.
        DataError: the server sends more than `largest` bytes, or another part than the one that was asked for.
    """
    begun, have = _begun(record), os.fstat(file.fileno()).st_size
    if begun is not None and begun.url != url:
        begun = None
    headers = {}
    if begun is not None and 0 < have < begun.total:
        headers = {"Range": f"bytes={have}-", "If-Range": begun.validator}
    elif begun is None or have != begun.total:
        have = 0
    else:
        return  # it was received whole, and then not checked any more
    with _request(url, headers) as response:
        total = _received_before(response, have, begun)
        if total is None:
            have, total = 0, int(response.headers.get("Content-Length") or 0)
            _refuse_more(total, largest)
            # First the note: it must never speak of bytes that are gone, or of those of another address.
            record.unlink(missing_ok=True)
            file.truncate(0)
            _note(record, url, response, total)
        plain = f"fetching {label}, {total or 'unknown number of'} bytes"
        with progress(total, label, unit="B", plain=plain) as advance:
            advance(have)
            while chunk := response.read(CHUNK):
                _refuse_more(have + len(chunk), largest)
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))
        if total and have != total:
            raise OSError(f"the connection broke after {have} of {total} bytes")
    file.flush()
    os.fsync(file.fileno())


def _refuse_more(size: int, largest: int) -> None:
    if size > largest:
        raise DataError(f"the server sends {size} bytes or more, and it has {largest} at most")


def _request(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The response to a request for the rest of a file; for all of it, where the server has less than that by now."""
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if not headers or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    return cast(http.client.HTTPResponse, response)


def _received_before(response: http.client.HTTPResponse, have: int, begun: Begun | None) -> int | None:
    """Bytes of the whole file, where the response goes on after `have` of them; None where it starts again.

    Raises:
        DataError: it is another part than the one that was asked for.
    """
    if begun is None or response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return None
    sent = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range") or "")
    if sent is None or (int(sent[1]), int(sent[3])) != (have, begun.total):
        raise DataError("the server sent another part of it than the missing one; repeat the command")
    return begun.total


def _note(record: Path, url: str, response: http.client.HTTPResponse, total: int) -> None:
    """Notes what is needed to go on, if the server sends parts and tells versions of the file apart."""
    tag = response.headers.get("ETag") or ""
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    if total and validator and response.headers.get("Accept-Ranges") == "bytes":
        part = record.with_name(f"{record.name}.tmp")
        part.write_text(json.dumps(asdict(Begun(url, validator, total))))
        part.replace(record)


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
