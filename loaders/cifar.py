"""CIFAR-10 and CIFAR-100 from their *binary* archives or the extracted folders; nothing is ever unpickled.

Source of the format and the data: Krizhevsky, "Learning multiple layers of features from tiny images" (2009), and the
data sets' page. A record is the label bytes (CIFAR-100: coarse, fine), then 3,072 bytes: the red, green, blue planes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from .dataset import Published
from .download import check_sha256, fetch
from .errors import DataError, MissingDataError
from .split import Split, checked_split

PIXEL_BYTES = 3 * 32 * 32
LARGEST_FILE = 200 << 20  # a member that claims more is not unpacked whole; the largest real one has 154 MB
LARGEST_TAR = 256 << 20  # both archives unpack to 185 MB
MOST_MEMBERS = 32  # both have fewer than ten


@dataclass(frozen=True, slots=True)
class Cifar:
    """One published archive: its members with their sha256, and the shape of a record."""

    name: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    label_bytes: int
    num_classes: int
    url: str = "https://www.cs.toronto.edu/~kriz"


CIFAR10 = Cifar(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    archive_bytes=170_052_171,
    folder="cifar-10-batches-bin",
    train={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    test={"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
    label_bytes=1,
    num_classes=10,
)
CIFAR100 = Cifar(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    archive_sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    archive_bytes=168_513_733,
    folder="cifar-100-binary",
    train={"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
    test={"test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"},
    label_bytes=2,
    num_classes=100,
)


def read_cifar(spec: Cifar, root: Path) -> Published:
    """The data set from root/NAME or root itself, which holds the extracted folder or the archive.

    Raises:
        DataError: neither is there, or a file is damaged or not the published one.
    """
    places = [folder / item for folder in (root / spec.name, root) for item in (spec.folder, spec.archive)]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise MissingDataError(
            f"{spec.name} was not found: {root} holds neither {spec.folder}/ nor {spec.archive}; "
            f"run `hardfast data prepare {spec.name} --root {root}`, or put the binary version there"
        )
    contents = _read_folder(spec, source) if source.is_dir() else _read_archive(spec, source)
    train = [decode_records(spec, f"{source}/{name}", contents[name], sha256) for name, sha256 in spec.train.items()]
    (test,) = (decode_records(spec, f"{source}/{name}", contents[name], sha256) for name, sha256 in spec.test.items())
    joined = Split(torch.cat([part.images for part in train]), torch.cat([part.labels for part in train]))
    return Published(joined, test, spec.num_classes, str(source))


def fetch_cifar(spec: Cifar, root: Path, mirror: str | None) -> None:
    """Downloads the binary archive to root/NAME, from `mirror` or the authors' page, and checks its sha256."""
    target = root / spec.name / spec.archive
    check = partial(check_sha256, sha256=spec.archive_sha256)
    fetch(f"{mirror or spec.url}/{spec.archive}", target, check=check, largest=spec.archive_bytes)


def _read_folder(spec: Cifar, folder: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for name in (*spec.train, *spec.test):
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read ({error.strerror}): extract {spec.archive} again"
            ) from None
    return contents


def _read_archive(spec: Cifar, archive: Path) -> dict[str, bytes]:
    """The members that are asked for, read in memory; nothing is extracted to disk.

    Of an archive that is another one, a bounded part is unpacked: few members, and no more bytes than the published
    one has by far.
    """
    wanted = {f"{spec.folder}/{name}": name for name in (*spec.train, *spec.test)}
    contents: dict[str, bytes] = {}
    try:
        with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for member in islice(tar, MOST_MEMBERS):
                name = wanted.get(member.name)
                if name is None:
                    continue
                stream = tar.extractfile(member)
                if stream is None:
                    raise DataError(f"{archive}: {name} is not a file in it; delete the archive and fetch it again")
                contents[name] = stream.read(LARGEST_FILE)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise DataError(f"{archive} cannot be read ({error}): delete it and fetch it again") from None
    missing = next((name for name in wanted.values() if name not in contents), None)
    if missing is not None:
        raise DataError(f"{archive} cannot be read (it holds no {missing}): delete it and fetch it again")
    return contents


class _Bounded(gzip.GzipFile):
    """What a gzipped file unpacks to, of which `LARGEST_TAR` bytes at most are ever unpacked."""

    def read(self, size: int | None = -1) -> bytes:
        wanted = LARGEST_TAR if size is None or size < 0 else size
        self._check(self.tell() + wanted)
        return super().read(wanted)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if not 0 <= end <= LARGEST_TAR:
            raise tarfile.ReadError(f"it unpacks to more than {LARGEST_TAR >> 20} MiB")


def decode_records(spec: Cifar, source: str, content: bytes, sha256: str) -> Split:
    """The records of one binary file; images uint8 [N, 32, 32, 3], the last label byte as label.

    Raises:
        DataError: the size is not a whole number of records, a label is not a class, or the sha256 differs. The
            checks come in that order, so that the message names the most telling defect.
    """
    record = spec.label_bytes + PIXEL_BYTES
    if not content or len(content) % record:
        raise DataError(
            f"{source} is cut short or of another data set: {len(content)} bytes are not a whole number of "
            f"{record}-byte records; fetch it again"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = torch.from_numpy(table[:, spec.label_bytes - 1].astype(np.int64))
    planes = torch.from_numpy(table[:, spec.label_bytes :].copy()).reshape(-1, 3, 32, 32)
    split = checked_split(planes.permute(0, 2, 3, 1).contiguous(), labels, num_classes=spec.num_classes, source=source)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{source} is damaged: sha256 is {found[:16]}..., not {sha256[:16]}...; fetch it again")
    return split
