"""Fetching from a real server on the loopback: whole, broken, wrong, absent."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hardfast.loaders import DataError, fashion_mnist, prepare
from hardfast.loaders.cifar import fetch_cifar, read_cifar
from hardfast.loaders.download import fetch

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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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
    with pytest.raises(DataError, match="not a data set"):
        prepare("mnist", tmp_path)
