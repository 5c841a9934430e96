"""Files that attack who reads them: pickles with code in them, archives that become larger than memory."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import operator
import os
import pickle
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LARGE = 448 << 20  # bytes: more than a reader may need
HUGE = 2 << 30
Make = Callable[[Path, Path], object]


class Does:
    """What a pickle makes of itself: the result of a call."""

    def __init__(self, function: Any, *words: Any, state: Any = None) -> None:
        self.made = (function, words) if state is None else (function, words, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made

    def __call__(self) -> None:
        """A pickle may also call what it has made; pickle asks whether it can be called."""


def opens(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def by_system(canary: Path) -> Does:
    return Does(os.system, f": > '{canary}'")


def by_eval(canary: Path) -> Does:
    return Does(builtins.eval, opens(canary))


def raw(protocol: int, does: Callable[[Path], Any]) -> Make:
    return lambda path, canary: path.write_bytes(pickle.dumps(does(canary), protocol=protocol))


def saved(content: Callable[[Path], Any], *, old: bool = False) -> Make:
    return lambda path, canary: torch.save(content(canary), path, _use_new_zipfile_serialization=not old)


def hooked(canary: Path) -> dict[str, Any]:
    """A tensor like any other, but for its hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.zeros(2).storage()
    rebuild = Does(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, by_system(canary))
    return {"conv1.weight": rebuild}


def persistent(path: Path, canary: Path) -> None:
    """The code lies in the name of a tensor's storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", by_eval(canary), "0", "cpu", 2) if value is storage else None

    storage, file = object(), io.BytesIO()
    Pickler(file, 2).dump({"conv1.weight": [storage]})
    torch.save({"conv1.weight": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as whole:
        members = {member: whole.read(member) for member in whole.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, file.getvalue() if name.endswith("data.pkl") else data)


def tar_format(path: Path, canary: Path) -> None:
    """The format of the first releases of torch: an archive of pickles."""
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(by_system(canary), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


# Each writes a file that makes the canary when it is unpickled.
PICKLES: dict[str, tuple[str, Make]] = {
    "protocol 0, os.system": (".pt", raw(0, by_system)),
    "protocol 1, exec": (".pth", raw(1, lambda canary: Does(builtins.exec, opens(canary)))),
    "protocol 2, eval": (".bin", raw(2, by_eval)),
    "protocol 3, what was imported by name": (
        ".ckpt",
        raw(3, lambda canary: Does(Does(getattr, Does(__import__, "os"), "system"), f": > '{canary}'")),
    ),
    "protocol 4, a process": (".pt", raw(4, lambda canary: Does(subprocess.check_call, ["touch", str(canary)]))),
    "protocol 5, deep inside": (".pt", raw(5, lambda canary: {"state_dict": [{"a": (1, [by_system(canary)])}]})),
    "a method of an object": (
        ".pt",
        raw(2, lambda canary: Does(Does(operator.methodcaller, "touch"), canary)),
    ),
    "in place of a tensor": (".pt", saved(lambda canary: {"conv1.weight": by_system(canary)})),
    "beside the weights": (
        ".pt",
        saved(lambda canary: {"state_dict": {"conv1.weight": torch.zeros(2)}, "args": [by_eval(canary)]}),
    ),
    "in a tensor's hooks": (".pt", saved(hooked)),
    "in the state of a dictionary": (
        ".pt",
        saved(lambda canary: {"state_dict": Does(OrderedDict, state={"_metadata": by_system(canary)})}),
    ),
    "in the name of a storage": (".pt", persistent),
    "the old format": (".pth", saved(lambda canary: {"conv1.weight": by_eval(canary)}, old=True)),
    "the oldest format": (".tar", tar_format),
    "named .safetensors": (".safetensors", raw(4, by_system)),
}


def repacked(path: Path, change: Callable[[zipfile.ZipFile, str, bytes], object], packing: int) -> None:
    """A file of torch.save with [1000] floats, each member of which is written anew."""
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as whole:
        members = {member: whole.read(member) for member in whole.namelist()}
    with zipfile.ZipFile(path, "w", packing, compresslevel=1) as changed:
        for name, data in members.items():
            change(changed, name, data)


def packed_zeroes(root: Path) -> Path:
    """A weight file of two megabytes that is a tensor of 448 MB once it is unpacked."""

    def change(file: zipfile.ZipFile, name: str, data: bytes) -> None:
        if name.endswith("data/0"):
            with file.open(name, "w") as member:
                for _ in range(LARGE >> 20):
                    member.write(bytes(1 << 20))
        else:
            file.writestr(name, data.replace(b"M\xe8\x03", b"J" + struct.pack("<i", LARGE // 4)))

    repacked(root / "w.pt", change, zipfile.ZIP_DEFLATED)
    return root / "w.pt"


def claimed_sizes(root: Path) -> Path:
    """A weight file whose directory claims a terabyte."""
    repacked(root / "w.pt", lambda file, name, data: file.writestr(name, data), zipfile.ZIP_STORED)
    data = bytearray((root / "w.pt").read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    (root / "w.pt").write_bytes(data)
    return root / "w.pt"


def overlapping(root: Path) -> Path:
    """A weight file of 30,000 members that are one and the same megabyte."""
    repacked(root / "w.pt", lambda file, name, data: file.writestr(name, data), zipfile.ZIP_STORED)
    with zipfile.ZipFile(root / "w.pt", "a") as file:
        file.writestr("archive/data/1", bytes(1 << 20))
        (last,) = (member for member in file.infolist() if member.filename.endswith("data/1"))
        for number in range(30_000):
            again = zipfile.ZipInfo(f"archive/data/{number + 2}")
            again.header_offset, again.CRC = last.header_offset, last.CRC
            again.file_size = again.compress_size = last.file_size
            file.filelist.append(again)
    return root / "w.pt"


def expanded(root: Path) -> Path:
    """One number that stands for a tensor of a billion, in half precision: it would be cast up."""
    torch.save({"a": torch.zeros(1, dtype=torch.half).expand(10**5, 10**5)}, root / "w.pt")
    return root / "w.pt"


def nested(root: Path) -> Path:
    """Lists in lists, 100,000 deep."""
    depth = 100_000
    inside = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    repacked(root / "w.pt", lambda f, name, data: f.writestr(name, inside if "data.pkl" in name else data), 0)
    return root / "w.pt"


def doubled(root: Path) -> Path:
    """A pair of pairs of pairs, forty deep, as a key of a dictionary: to hash it takes hours."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(40))
    inside = b"\x80\x02](" + b")q\x00" + pairs + b"e}h%cK\x01s." % 40
    repacked(root / "w.pt", lambda f, name, data: f.writestr(name, inside if "data.pkl" in name else data), 0)
    return root / "w.pt"


def long_strings(root: Path) -> Path:
    """Pickles of the old format that claim a string of 4 GB."""
    (root / "w.pt").write_bytes(b"\x80\x02X" + struct.pack("<I", 0xFFFFFFFF) + b"abc.")
    return root / "w.pt"


def claimed_tensors(root: Path) -> Path:
    """A .safetensors file whose header claims a tensor of a terabyte."""
    header = {"a": {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, 1 << 40]}}
    text = json.dumps(header).encode()
    (root / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4000))
    return root / "w.safetensors"


def claimed_header(root: Path) -> Path:
    """A .safetensors file whose header has 2**40 bytes; the file is sparse and has as many."""
    with (root / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40) + b"{}")
        file.truncate(1 << 41)
    return root / "w.safetensors"


def archive_before(root: Path, entry: tarfile.TarInfo, zeroes: int) -> Path:
    """CIFAR-10's archive, in which something comes before the files."""
    folder = root / "cifar10"
    folder.mkdir()
    header = gzip.compress(entry.tobuf(format=tarfile.GNU_FORMAT))
    (folder / "cifar-10-binary.tar.gz").write_bytes(header + packed(zeroes))
    return root


def packed(zeroes: int) -> bytes:
    """What gzip makes of so many zeroes: the same piece over and over."""
    piece = 1 << 20
    return gzip.compress(bytes(piece), compresslevel=9) * (zeroes // piece)


def large_member(root: Path) -> Path:
    """An archive of some megabytes with a member of 2 GB."""
    entry = tarfile.TarInfo("cifar-10-batches-bin/readme.html")
    entry.size = HUGE
    return archive_before(root, entry, entry.size)


def large_name(root: Path) -> Path:
    """An archive in which a name has 2 GB."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, HUGE
    return archive_before(root, entry, entry.size)


def backwards(root: Path) -> Path:
    """An archive whose member has a negative size: the next one is the same again."""
    entry = tarfile.TarInfo("cifar-10-batches-bin/readme.html")
    entry.size = -512
    return archive_before(root, entry, 1 << 20)


def small_idx(root: Path) -> Path:
    """A file of Fashion-MNIST that unpacks to 2 GB."""
    (root / "train-images-idx3-ubyte.gz").write_bytes(packed(HUGE))
    return root / "train-images-idx3-ubyte.gz"


def large_annotation(root: Path) -> Path:
    """Tiny ImageNet's archive, the list of classes of which unpacks to 448 MB; 20,000 empty files beside it."""
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("tiny-imagenet-200/wnids.txt", "w") as member:
            for _ in range(LARGE >> 20):
                member.write(bytes(1 << 20))
        for number in range(20_000):
            file.writestr(f"tiny-imagenet-200/{'x/' * 20}{number}", b"")
    return root


def sparse_class(root: Path) -> Path:
    """ImageNet's archive: the archive of its first class says that it is an image of 8 EB, nearly all of it a hole."""
    inner = io.BytesIO()
    image = tarfile.TarInfo("n01440764_1.JPEG")
    image.size = 512
    header = bytearray(image.tobuf(format=tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"\x80" + (1 << 62).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    inner.write(bytes(header) + bytes(512 + 1024))
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        entry = tarfile.TarInfo("n01440764.tar")
        entry.size = len(inner.getvalue())
        tar.addfile(entry, io.BytesIO(inner.getvalue()))
    return root


def outside(root: Path) -> Path:
    """ImageNet's archive: a class's archive holds a link to the folder above, and a file that goes through it."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        link = tarfile.TarInfo("n01440764_1.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, str(root)
        tar.addfile(link)
        entry = tarfile.TarInfo("n01440764_1.JPEG/../../canary")
        tar.addfile(entry, io.BytesIO(b""))
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        entry = tarfile.TarInfo("n01440764.tar")
        entry.size = len(inner.getvalue())
        tar.addfile(entry, io.BytesIO(inner.getvalue()))
    return root


# By name: which reader it is for, and what writes it into a folder and says where.
BOMBS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{make.__name__: ("weights", make) for make in (packed_zeroes, claimed_sizes, overlapping, expanded, nested)},
    **{make.__name__: ("weights", make) for make in (doubled, long_strings, claimed_tensors, claimed_header)},
    **{make.__name__: ("cifar", make) for make in (large_member, large_name, backwards)},
    "small_idx": ("fashion", small_idx),
    "large_annotation": ("tiny", large_annotation),
    **{make.__name__: ("imagenet", make) for make in (sparse_class, outside)},
}
