"""Makes data sets ready for training: found or fetched, unpacked, checked, indexed, and written as .beton files."""

from __future__ import annotations

from pathlib import Path

from .beton.origin import fingerprint
from .beton.writer import is_current, write_beton
from .dataset import Published
from .datasets import REGISTRY, DataOptions, Entry
from .errors import DataError, MissingDataError
from .folder_index import shown
from .image_folder import FolderSource
from .imagenet import PUBLISHED as IMAGENET
from .imagenet import ImageNet, imagenet_layout, read_imagenet
from .imagenet_archives import has_classes, unpack_imagenet
from .own_images import TEST_BETON, TRAIN_BETON, Layout, find_layout, read_image_folder
from .source import ImageSource
from .split import Split
from .streamed import StreamedSplit


def prepare(
    name: str, root: Path, *, mirror: str | None = None, beton: bool = False, max_side: int | None = None
) -> str:
    """Makes a data set ready: reads and checks it where it is found, and otherwise fetches or unpacks it first.

    Args:
        name: a data set of the registry.
        root: folder for all data sets; this one goes to root/NAME. For `folder`, that folder itself.
        mirror: address of a folder that holds the files under their published names, instead of the official one.
        beton: also write train.beton and val.beton there.
        max_side: pixels that the longer side of an image in them has at most (data sets of photographs of many sizes).

    Returns:
        One line: where the data set lies, and what was written.

    Raises:
        DataError: unknown name, no connection, a file that is not the published one, or a data set that cannot be read.
    """
    options = DataOptions(name=name, root=str(root))  # type: ignore[arg-type]  # checks itself
    entry = REGISTRY[options.name]
    if max_side is not None and not (beton and entry.streamed):
        raise DataError("max-side is for the .beton files of `folder` and `imagenet`: give it with --beton, or drop it")
    if entry.grey and beton:
        raise DataError(
            f"{name} is grey, and .beton files are of colour images: drop --beton, since loader.name resident, which "
            "holds it in memory, is the one for it"
        )
    if entry.embedded and not beton:
        return "nothing to fetch: it comes with the engine"
    if name == "synthetic":
        raise DataError("synthetic is random bytes, made anew at every start: there is nothing to write as .beton")
    if name == "folder":
        found, line = prepare_folder(root)
    elif name == "imagenet":
        found, line = prepare_imagenet(root)
    else:
        found = _fetched(entry, options, mirror)
        line = found.source
    if not beton:
        return line
    folder = root if name == "folder" else root / name
    if name == "imagenet" and isinstance(found.train, StreamedSplit):  # beside the images: root may be their folder
        folder = Path(found.train.source.place.path).parent
    written = write_betons(found, folder, max_side=max_side)
    return f"{line}; wrote {' and '.join(map(shown, written))}" if written else f"{line}; its .beton files are current"


def _fetched(entry: Entry, options: DataOptions, mirror: str | None) -> Published:
    try:
        return entry.read(options)
    except MissingDataError:
        if entry.fetch is None:
            raise
        entry.fetch(Path(options.root), mirror)
        return entry.read(options)


def prepare_folder(root: Path) -> tuple[Published, str]:
    """Indexes the user's own images anew, every one checked; the data set, and a line about it.

    Raises:
        DataError: as `read_image_folder`, or names the first image that cannot be decoded.
    """
    differs = _indexed(find_layout(root))
    found = read_image_folder(root, image_size=None, test_crop=None)
    return found, f"{_counts(found)}{differs}"


def prepare_imagenet(root: Path, spec: ImageNet = IMAGENET) -> tuple[Published, str]:
    """ImageNet from its folders, .beton files or the official archives; the data set, and a line about it.

    Every file of folders is read, and decoded to its end unless it is known to be as it was when that was done.

    Raises:
        DataError: none of them is there, or they are not what was published; or names the first image that cannot be
            decoded.
    """
    layout = imagenet_layout(root, spec)
    if layout is None or _unfinished(root, layout, spec):
        unpack_imagenet(root, spec)
        layout = imagenet_layout(root, spec)
    differs = _indexed(layout)
    found = read_imagenet(root, image_size=None, test_crop=None, spec=spec)
    return found, f"{_counts(found)}{differs}"


def _indexed(layout: Layout | None) -> str:
    """Indexes the folders of both splits anew; what is to be said of that, behind a semicolon."""
    left_out: list[str] = []
    differs: list[str] = []
    for part in () if layout is None else layout.parts:
        if part.is_dir():
            source = FolderSource.refreshed(part)
            left_out += [shown(part / name) for name in source.left_out]
            differs += [f"; {source.changes}"] if source.changes else []
    more = f"; left out as no images: {len(left_out)}, like {left_out[0]}" if left_out else ""
    return "".join([more, *differs])


def _unfinished(root: Path, layout: Layout, spec: ImageNet) -> bool:
    """Whether classes are missing that an archive which is at hand may hold."""
    archives = [place / spec.train.name for place in (root / spec.name, root)]
    ours = layout.train == root / spec.name / "train"
    return ours and not has_classes(layout.train, spec) and any(archive.exists() for archive in archives)


def _counts(found: Published) -> str:
    return f"{found.source}: {len(found.train):,} + {len(found.test):,} images, {found.num_classes:,} classes"


def write_betons(found: Published, folder: Path, *, max_side: int | None) -> list[Path]:
    """Writes the published training and test images to FOLDER/train.beton and val.beton, where those are not current.

    Where test images were drawn from the training set's own folder, train.beton holds both, and they are drawn from it
    again in the same way.

    Args:
        found: the data set.
        folder: where the files go.
        max_side: pixels that the longer side of an image has at most.

    Raises:
        DataError: as `write_beton`; or the images are read from .beton files as it is.
    """
    written: list[Path] = []
    train = found.train
    for split, name in ((train, TRAIN_BETON), (found.test, TEST_BETON)):
        if isinstance(split, StreamedSplit):
            if split.source.place.kind == "beton":
                raise DataError(
                    f"{split.source} is a .beton file already: drop --beton, or bring back the image folders"
                )
            if name == TEST_BETON and isinstance(train, StreamedSplit) and split.source is train.source:
                continue
        source: Split | ImageSource = split if isinstance(split, Split) else split.source
        if not is_current(folder / name, fingerprint(source), max_side):
            write_beton(source, folder / name, label=f"writing {name}", max_side=max_side)
            written.append(folder / name)
    return written
