"""Fetching from a real server on the loopback: whole, broken, wrong, absent, and going on after a break."""

from __future__ import annotations

import gzip
import hashlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from hardfast.loaders import DataError, download, fashion_mnist, prepare
from hardfast.loaders.cifar import CIFAR10, CIFAR100, fetch_cifar, read_cifar
from hardfast.loaders.download import check_sha256, fetch
from hardfast.loaders.tiny_imagenet import PUBLISHED as TINY_IMAGENET
from hardfast.loaders.tiny_imagenet import TinyImageNet, fetch_tiny_imagenet

pytest.importorskip("PIL")
from .makers import SPECS, cifar_members, describe, fashion_files, write_cifar


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a name in `broken` promises more bytes than it sends."""

    broken: frozenset[str] = frozenset()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length" and Path(self.path).name in self.broken:
            value = str(int(value) + 100)
        super().send_header(keyword, value)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def left_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_fashion_mnist_is_fetched_and_only_what_is_missing(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = mirror
    files = fashion_files(folder)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    root = tmp_path / "data"
    assert prepare("fashion-mnist", root, mirror=address) == str(root / "fashion-mnist")
    assert left_in(root) == sorted(file.name for file in files.values())
    for path in folder.iterdir():
        path.unlink()
    prepare("fashion-mnist", root, mirror=address)  # nothing is asked of the empty server


def test_cifar_is_fetched(mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = mirror
    members = cifar_members(SPECS["cifar10"])
    spec = describe(SPECS["cifar10"], members)
    archive = write_cifar(spec, tmp_path / "made", members, archive=True)
    (folder / archive.name).write_bytes(archive.read_bytes())
    root = tmp_path / "data"
    with pytest.raises(DataError, match="sha256"):  # the archive is not the published one
        fetch_cifar(spec, root, mirror=address)
    assert left_in(root) == []
    spec = replace(spec, archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    fetch_cifar(spec, root, mirror=address)
    assert left_in(root) == [archive.name]
    assert len(read_cifar(spec, root).train) == 100


def test_what_is_there_already_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's folder, and files that lie in the root itself."""
    monkeypatch.setattr(fashion_mnist, "FILES", fashion_files(tmp_path / "debian"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    assert prepare("fashion-mnist", tmp_path / "data", mirror="http://127.0.0.1:9") == str(tmp_path / "debian")
    assert prepare("fashion-mnist", tmp_path / "debian", mirror="http://127.0.0.1:9") == str(tmp_path / "debian")


def test_a_fetched_file_can_be_read_by_others(mirror: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = mirror
    (folder / "x").write_bytes(b"abc")
    fetch(f"{address}/x", tmp_path / "new" / "x", check=lambda path: None)
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("fault", ["broken", "wrong", "absent", "no server", "no folder", "bad address"])
def test_a_failed_fetch_leaves_nothing(
    fault: str, mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = mirror
    files = fashion_files(folder)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    name = files["train images"].name
    if fault == "broken":
        monkeypatch.setattr(Handler, "broken", frozenset({name}))
    elif fault == "wrong":
        (folder / name).write_bytes(b"an error page")
    elif fault == "absent":
        (folder / name).unlink()
    elif fault == "no folder":
        (tmp_path / "data").write_text("a file")
    else:
        address = {"no server": "http://127.0.0.1:9", "bad address": "http://127.0.0.1/a b"}[fault]
    with pytest.raises(DataError, match=name) as error:
        prepare("fashion-mnist", tmp_path / "data", mirror=address)
    assert "\n" not in str(error.value)
    assert left_in(tmp_path / "data") == []  # and a file in the folder's place is left alone


def test_unknown_and_embedded_names(tmp_path: Path) -> None:
    assert "nothing to fetch" in prepare("digits", tmp_path)
    with pytest.raises(DataError, match=r"must be one of .* imagenet"):
        prepare("mnist", tmp_path)


REST = "bytes=2000000-"  # what is missing after `break_off`


class Ranges(BaseHTTPRequestHandler):
    """Serves one file, whole or from a place on, as servers of large files do."""

    content = b""
    etag: str | None = '"one"'
    ignores_range = False
    refuses_range = False
    wrong_part = False
    stops_after: int | None = None  # bytes of a body, then the connection breaks
    absent: str | None = None  # a path that is not served
    tells_length = True
    seconds_per_chunk = 0.0
    asked: ClassVar[list[tuple[str | None, int]]] = []  # the Range of each request, and the status of its answer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        if self.path == self.absent:
            self.send_error(404)
            return
        if wanted and self.refuses_range:
            self.asked.append((wanted, 416))
            self.send_error(416)
            return
        same = self.headers["If-Range"] in (self.etag, "Tue, 01 Jan 2019 00:00:00 GMT")
        start = int(wanted[6:-1]) if wanted and same and not self.ignores_range else 0
        self.asked.append((wanted, 206 if start else 200))
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT")
        if self.etag is not None:
            self.send_header("ETag", self.etag)
        if start:
            total, shift = len(self.content), int(self.wrong_part)
            self.send_header("Content-Range", f"bytes {start - shift}-{total - 1}/{total}")
        body = self.content[start:]
        if self.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: self.stops_after]
        with suppress(ConnectionError):  # the other side was killed
            for place in range(0, len(body), 1 << 16):
                self.wfile.write(body[place : place + (1 << 16)])
                time.sleep(self.seconds_per_chunk)


@pytest.fixture
def ranges() -> Iterator[tuple[str, type[Ranges]]]:
    """The address of one file of 3 MB, and the handler that serves it."""
    content = np.random.default_rng(0).bytes(3_000_000)
    handler = type("Handler", (Ranges,), {"content": content, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file", handler
    server.shutdown()
    server.server_close()
    thread.join()


def whole(path: Path, content: bytes) -> None:
    check_sha256(path, sha256=hashlib.sha256(content).hexdigest())


def break_off(address: str, handler: type[Ranges], target: Path) -> None:
    """A first attempt that gets two thirds of the file."""
    handler.stops_after = 2_000_000
    with pytest.raises(DataError, match="could not be fetched") as error:
        fetch(address, target, check=lambda path: None)
    assert "\n" not in str(error.value)
    assert not target.exists()
    handler.stops_after = None
    handler.asked.clear()


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_broken_transfer_goes_on(etag: str | None, ranges: tuple[str, type[Ranges]], tmp_path: Path) -> None:
    """With an ETag, or where there is none that promises equal bytes, with the date."""
    address, handler = ranges
    handler.etag = etag
    target = tmp_path / "x"
    break_off(address, handler, target)
    assert left_in(tmp_path) == ["x.part", "x.part.json"]
    fetch(address, target, check=partial(whole, content=handler.content))
    assert handler.asked == [(REST, 206)]
    assert target.read_bytes() == handler.content
    assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("the file", [(REST, 200)]),
        ("the address", [(None, 200)]),
        ("no ranges", [(REST, 200)]),
        ("refused", [(REST, 416), (None, 200)]),
        ("damaged note", [(None, 200)]),
    ],
)
def test_it_starts_again_where_it_must(
    change: str, asked: list[tuple[str | None, int]], ranges: tuple[str, type[Ranges]], tmp_path: Path
) -> None:
    address, handler = ranges
    target = tmp_path / "x"
    break_off(address, handler, target)
    if change == "the file":
        handler.content, handler.etag = handler.content[::-1], '"two"'
    elif change == "the address":
        address += "2"
    elif change == "no ranges":
        handler.ignores_range = True
    elif change == "refused":
        handler.refuses_range = True
    else:
        (tmp_path / "x.part.json").write_text('{"url": 1')
    fetch(address, target, check=partial(whole, content=handler.content))
    assert handler.asked == asked
    assert target.read_bytes() == handler.content
    assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize("fault", ["damaged part", "other part", "whole, but another file"])
def test_what_is_wrong_is_not_kept(fault: str, ranges: tuple[str, type[Ranges]], tmp_path: Path) -> None:
    """So that the next attempt starts from nothing, and succeeds."""
    address, handler = ranges
    target, part = tmp_path / "x", tmp_path / "x.part"
    break_off(address, handler, target)
    if fault == "damaged part":
        part.write_bytes(bytes(2_000_000))
    elif fault == "other part":
        handler.wrong_part = True
    else:
        part.write_bytes(bytes(len(handler.content)))
    with pytest.raises(DataError, match="did not give the published file"):
        fetch(address, target, check=partial(whole, content=handler.content))
    assert left_in(tmp_path) == []
    fetch(address, target, check=partial(whole, content=handler.content))
    assert target.read_bytes() == handler.content


@pytest.mark.parametrize("tells_length", [True, False])
def test_more_than_was_published_is_refused(
    tells_length: bool, ranges: tuple[str, type[Ranges]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of it is received, or else as soon as it is too much; the size itself is not."""
    address, handler = ranges
    handler.tells_length = tells_length
    monkeypatch.setattr(download, "CHUNK", 1 << 16)
    size, checked = len(handler.content), []
    with pytest.raises(DataError, match=f"or more, and it has {size - 1} at most"):
        fetch(address, tmp_path / "x", check=checked.append, largest=size - 1)
    with pytest.raises(DataError, match=f"sends {size if tells_length else 1 << 16} bytes or more, and it has 9"):
        fetch(address, tmp_path / "x", check=checked.append, largest=9)
    assert left_in(tmp_path) == []
    fetch(address, tmp_path / "x", check=checked.append, largest=size)
    assert len(checked) == 1


def test_the_published_sizes(ranges: tuple[str, type[Ranges]], tmp_path: Path) -> None:
    """Every data set that is fetched says how much it takes at most, and repeated packing of Fashion-MNIST fits."""
    address, handler = ranges
    mirror = address.removesuffix("/file")
    for spec in (CIFAR10, CIFAR100):
        assert 100 << 20 < spec.archive_bytes < 200 << 20
        with pytest.raises(DataError, match="and it has 9 at most"):
            fetch_cifar(replace(spec, archive_bytes=9), tmp_path, mirror)
    with pytest.raises(DataError, match="and it has 9 at most"):
        fetch_tiny_imagenet(tmp_path, mirror, replace(TINY_IMAGENET, archive_bytes=9))
    with pytest.raises(DataError, match=r"and it has [0-9]{8} at most"):
        handler.content = bytes(48 << 20)
        fashion_mnist.fetch_fashion_mnist(tmp_path, mirror)
    for file in fashion_mnist.FILES.values():
        stored = gzip.compress(bytes(file.bytes), compresslevel=0)
        assert file.bytes < len(stored) < file.largest
    assert left_in(tmp_path) == []


@pytest.fixture
def tiny(ranges: tuple[str, type[Ranges]]) -> tuple[TinyImageNet, str, type[Ranges]]:
    """Tiny ImageNet at two addresses of the server, the path of its archive, and the handler."""
    address, handler = ranges
    urls = tuple(address.replace("/file", f"/{name}") for name in ("first", "second"))
    digest = hashlib.md5(handler.content).hexdigest()
    return replace(TINY_IMAGENET, urls=urls, archive_md5=digest), TINY_IMAGENET.archive, handler


@pytest.mark.parametrize("broken", ["first", "second"])
def test_one_of_two_addresses_breaks_and_goes_on(
    broken: str, tiny: tuple[TinyImageNet, str, type[Ranges]], tmp_path: Path
) -> None:
    """The other one is not asked then, and the address that has sent a part is asked first the next time."""
    spec, archive, handler = tiny
    handler.stops_after = 2_000_000
    handler.absent = f"/first/{archive}" if broken == "second" else None
    with pytest.raises(DataError, match=f"{broken}/.* broke after 2000000 .* goes on from there"):
        fetch_tiny_imagenet(tmp_path, None, spec)
    assert handler.asked == [(None, 200)]
    assert left_in(tmp_path) == [f"{archive}.part", f"{archive}.part.json"]
    handler.asked.clear()
    handler.stops_after = handler.absent = None
    fetch_tiny_imagenet(tmp_path, None, spec)
    assert handler.asked == [(REST, 206)]
    assert left_in(tmp_path) == [archive]
    assert (tmp_path / "tiny-imagenet" / archive).read_bytes() == handler.content


def test_an_address_that_sends_nothing_more_is_left(
    tiny: tuple[TinyImageNet, str, type[Ranges]], tmp_path: Path
) -> None:
    """Its part stays while no other address answers; the first that does begins anew."""
    spec, archive, handler = tiny
    break_off(f"{spec.urls[0]}/{archive}", handler, tmp_path / "tiny-imagenet" / archive)
    gone = replace(spec, urls=(spec.urls[0], "http://127.0.0.1:9"))
    handler.absent = f"/first/{archive}"
    with pytest.raises(DataError, match=r"first/.* 404.*127.0.0.1:9/"):
        fetch_tiny_imagenet(tmp_path, None, gone)
    assert left_in(tmp_path) == [f"{archive}.part", f"{archive}.part.json"]
    fetch_tiny_imagenet(tmp_path, None, spec)
    assert handler.asked == [(None, 200)]
    assert left_in(tmp_path) == [archive]


def test_a_killed_download_goes_on(ranges: tuple[str, type[Ranges]], tmp_path: Path) -> None:
    """SIGKILL in the middle; meanwhile a second process that wants the same file is told so."""
    address, handler = ranges
    handler.seconds_per_chunk = 0.1
    target, part = tmp_path / "x", tmp_path / "x.part"
    program = f"""
    from pathlib import Path
    from hardfast.loaders import download
    download.CHUNK = 1 << 16
    download.fetch({address!r}, Path({str(target)!r}), check=lambda path: None)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL)
    try:
        while not part.exists() or part.stat().st_size < 300_000:
            assert child.poll() is None
            time.sleep(0.02)
        with pytest.raises(DataError, match="another process is fetching it"):
            fetch(address, target, check=lambda path: None)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    kept = part.stat().st_size
    assert 300_000 <= kept < len(handler.content)
    handler.seconds_per_chunk = 0
    fetch(address, target, check=partial(whole, content=handler.content))
    assert handler.asked == [(None, 200), (f"bytes={kept}-", 206)]
    assert left_in(tmp_path) == ["x"]
