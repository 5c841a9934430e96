"""Damaged .beton files: refused, or announced as unverified and then loaded without a crash by the real FFCV."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hardfast.loaders.beton.check import read_structure
from hardfast.loaders.beton.format import JPEG, RAW, empty_tables, head
from hardfast.loaders.beton.source import BetonSource, sidecar, validate
from hardfast.loaders.errors import DataError

pytest.importorskip("PIL")
from .beton_damage import Base, Mutant, claim, padded_jpeg, random, structural
from .beton_files import SIZE, Loaded, memory_source, mixed_folder, picture, run_ffcv, seal, write_plainly

MUTANTS, SURVIVORS = 516, 20
MUTANTS_AT_NIGHT, SURVIVORS_AT_NIGHT = 20_000, 200


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """24 JPEGs and 24 images in plain pixels; the sidecar lies beside it."""
    folder = tmp_path_factory.mktemp("sound")
    return Base(write_plainly(mixed_folder(folder / "train", 48), folder / "train.beton"))


def refused(path: Path) -> bool:
    """Whether the check refuses a file, with one line that names it."""
    try:
        checked = validate(path, quiet=True)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error), error
        return True
    assert checked.sha256 is not None or "would not be noticed" in (checked.warning(path) or "")
    return False


def survivors(base: Base, mutants: Iterable[Mutant], folder: Path, wanted: int) -> tuple[int, list[bytes]]:
    """Puts each mutant in the place of the sound file, with the sound file's sidecar and without one.

    With it, every mutant must be refused.

    Returns:
        How many were not refused without it, and `wanted` of them, drawn at random.
    """
    path = folder / base.path.name
    draw = np.random.default_rng(0)
    passed, kept = 0, []
    for mutant in mutants:
        path.write_bytes(mutant.content)
        sidecar(path).write_bytes(sidecar(base.path).read_bytes())
        assert refused(path), f"{mutant.name}: not refused although its sha256 is wrong"
        sidecar(path).unlink()
        if refused(path):
            continue
        passed += 1
        if len(kept) < wanted:
            kept.append(mutant.content)
        elif (place := draw.integers(passed)) < wanted:
            kept[place] = mutant.content
    return passed, kept


def close(image: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether an image is what Pillow decodes, but for the roundings of another decoder."""
    apart = np.abs(image.astype(int) - pixels[: image.shape[0], : image.shape[1]])
    return apart.max() <= 4 and apart.mean() <= 0.5


def check_sound(path: Path, loaded: Loaded) -> None:
    """Every image was delivered as it is."""
    source, modes = BetonSource.open(path), read_structure(path).modes
    assert not loaded.errors
    assert loaded.labels.tolist() == source.labels.tolist()
    for sample, image in enumerate(loaded.images):
        pixels = source.pixels(sample)
        assert np.array_equal(image, pixels[: SIZE[0], : SIZE[1]]) if modes[sample] == RAW else close(image, pixels)


def check_survivor(path: Path, loaded: Loaded, sound_path: Path, sound: Loaded) -> int:
    """What is not changed was delivered as it was; what is, as Pillow decodes it too, or refused by its name.

    Returns:
        The number of images that are not what they were.
    """
    source, original = BetonSource.open(path), BetonSource.open(sound_path)
    wrong = 0
    for sample in range(len(source)):
        label, said = source.labels[sample], loaded.errors.get(sample)
        assert loaded.labels[sample] == (label if said is None else -1)
        try:
            pixels = source.pixels(sample)
        except DataError as error:
            assert said == str(error)
            pixels = None
        if said is not None:
            assert pixels is None and said.startswith(f"record {sample} of {path} ") and "\n" not in said
        elif source.encoded(sample) == original.encoded(sample) and np.array_equal(pixels, original.pixels(sample)):
            assert np.array_equal(loaded.images[sample], sound.images[sample]), (path, sample)
            continue
        else:
            assert close(loaded.images[sample], pixels), (path, sample)
        wrong += 1
    return wrong


def check_mutants(base: Base, folder: Path, mutants: int, wanted: int) -> list[bytes]:
    """All structural and many random mutants; returns some that survive the check of the structure."""
    names: list[str] = []
    contents: set[int] = set()

    def counted(made: Iterable[Mutant]) -> Iterator[Mutant]:
        for mutant in made:
            names.append(mutant.name)
            contents.add(hash(mutant.content))
            yield mutant

    assert survivors(base, counted(structural(base)), folder, 1) == (0, [])
    assert mutants / 2 < len(names) < mutants or mutants == MUTANTS_AT_NIGHT
    passed, kept = survivors(base, counted(random(base, mutants - len(names), seed=1)), folder, wanted)
    assert (len(names), len(contents), len(kept)) == (mutants, mutants, wanted)
    assert passed < 0.7 * mutants
    return kept


def check_ffcv(base: Base, folder: Path, contents: list[bytes], pictures: list[np.ndarray]) -> None:
    """The loader ffcv reads our file, one of FFCV's own writer, and survivors."""
    theirs, paths = folder / "theirs.beton", []
    for number, content in enumerate(contents):
        paths.append(folder / f"survivor-{number}.beton")
        paths[-1].write_bytes(content)
    sound, foreign, *loaded = run_ffcv(folder, [base.path, theirs, *paths], write=(theirs, pictures))
    check_sound(base.path, sound)
    checked = validate(theirs)
    assert (checked.images, checked.sha256) == (len(pictures), None)
    check_sound(theirs, foreign)
    check_foreign(theirs, pictures)
    wrong = [check_survivor(path, one, base.path, sound) for path, one in zip(paths, loaded, strict=True)]
    assert sum(wrong) > 0 and any(one.errors for one in loaded)  # or the survivors would not be worth loading


def check_foreign(path: Path, pictures: list[np.ndarray]) -> None:
    """Our source reads what FFCV's writer has written."""
    source, structure = BetonSource.open(path), read_structure(path)
    assert source.labels.tolist() == [3 * number + 1 for number in range(len(pictures))]
    assert 5 < np.count_nonzero(structure.modes == JPEG) < len(pictures) - 5
    for sample, image in enumerate(pictures):
        pixels = source.pixels(sample)
        assert pixels.shape == image.shape == (source.heights[sample], source.widths[sample], 3)
        if structure.modes[sample] == RAW:
            assert np.array_equal(pixels, image)
        else:
            assert np.abs(pixels.astype(int) - image).mean() < 4
    assert len(set((structure.places // (1 << 21)).tolist())) > 2  # pages, of two processes


def test_damaged_and_foreign_files(base: Base, tmp_path: Path) -> None:
    """516 files: with a sidecar all are refused; without one, the structural ones are. One process compiles FFCV."""
    pytest.importorskip("ffcv")
    kept = check_mutants(base, tmp_path, MUTANTS, SURVIVORS)
    check_ffcv(base, tmp_path, kept, [picture(number) for number in range(50)])


@pytest.mark.slow
def test_many_damaged_files(base: Base, tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    kept = check_mutants(base, tmp_path, MUTANTS_AT_NIGHT, SURVIVORS_AT_NIGHT)
    check_ffcv(base, tmp_path, kept, [picture(number) for number in range(50)])


@pytest.mark.parametrize(("side", "fits"), [(13_377, True), (13_378, False), (65_535, False)])
def test_an_image_has_no_more_pixels_than_a_decoder_may_allocate(
    base: Base, tmp_path: Path, side: int, fits: bool
) -> None:
    """A kilobyte may claim 4 billion of them, and every thread would make room."""
    row, content = base.of_mode(JPEG)[2], bytearray(base.content)
    claim(base, row, side, content)
    path = tmp_path / "train.beton"
    path.write_bytes(content)
    if fits:
        validate(path)
    else:
        with pytest.raises(DataError, match=f"record {row} has {side}x{side} pixels, more than"):
            validate(path)


def test_a_sound_file_passes(base: Base, tmp_path: Path) -> None:
    checked = validate(base.path)
    assert checked.images == base.samples
    assert checked.sha256 is not None and checked.warning(base.path) is None
    path = tmp_path / "train.beton"
    path.write_bytes(base.content + b"tail")  # less than an entry of the table, which FFCV does not read
    checked = validate(path)
    assert checked.sha256 is None and str(sidecar(path).name) in (checked.warning(path) or "")


def test_a_page_of_zeros_is_damage_unless_its_digest_agrees(tmp_path: Path) -> None:
    images = np.full((1500, 32, 32, 3), 7, np.uint8)  # in three pages
    images[3] = images[-1] = 0
    path = write_plainly(memory_source(images), tmp_path / "train.beton")
    sidecar(path).unlink()
    validate(path)  # two black images are no damage
    structure = read_structure(path)
    second = int(structure.places[0]) + structure.page
    with path.open("r+b") as file:
        file.seek(second)
        file.write(bytes(structure.page))
    inside = np.flatnonzero((structure.places >= second) & (structure.places < second + structure.page))
    with pytest.raises(DataError, match=f"records {inside[0]} to {inside[-1]} hold nothing but zeros"):
        validate(path)
    seal(path)
    assert validate(path).images == 1500


PAGE = 1 << 21


def compose(path: Path, page: int, places: tuple[int, ...], sizes: tuple[int, ...], table: int) -> None:
    """A file of grey 8x8 images in plain pixels whose tables agree with each other, whatever they say."""
    records, allocations = empty_tables(len(places))
    records["mode"], records["width"], records["height"], records["place"] = RAW, 8, 8, places
    allocations["sample"], allocations["place"], allocations["size"] = range(len(places)), places, sizes
    with path.open("wb") as file:
        file.write(head(len(places), page, table) + records.tobytes())
        for place in places:
            file.seek(place)
            file.write(bytes([128]) * 192)
        file.seek(table)
        file.write(allocations.tobytes())
        file.truncate()


@pytest.mark.parametrize(
    ("what", "page", "places", "sizes", "table"),
    [
        (None, PAGE, (PAGE, PAGE + 192, 2 * PAGE), (192, 192, 192), 3 * PAGE),
        (None, PAGE, (2 * PAGE, PAGE + 500, PAGE), (192, 192, 192), 3 * PAGE),
        ("no power of two", 3 << 20, (3 << 20, 4 << 20), (192, 192), 6 << 20),
        ("no power of two", 1 << 20, (1 << 20, 2 << 20), (192, 192), 3 << 20),
        ("cannot begin", PAGE, (PAGE, PAGE + 192), (192, 192), 2 * PAGE + 8),
        ("cannot begin", PAGE, (PAGE, PAGE + 192), (192, 192), PAGE),
        ("record 1 overlaps", PAGE, (PAGE, PAGE + 191), (192, 192), 2 * PAGE),
        ("record [01] overlaps", PAGE, (PAGE, PAGE), (192, 192), 2 * PAGE),
        ("record 1 crosses", PAGE, (PAGE, 2 * PAGE - 191), (192, 192), 3 * PAGE),
        ("first image is at", PAGE, (PAGE + 1, PAGE + 193), (192, 192), 2 * PAGE),
        ("entry 1 of the allocation", PAGE, (PAGE, 2 * PAGE), (192, PAGE + 1), 4 * PAGE),
        ("entry 1 of the allocation", PAGE, (PAGE, 2 * PAGE), (192, 192), 2 * PAGE),
        ("entry 0 of the allocation", PAGE, (PAGE - 192, PAGE), (192, 192), 2 * PAGE),
        ("is 8x8 pixels in 193 bytes", PAGE, (PAGE, PAGE + 192), (192, 193), 2 * PAGE),
    ],
)
def test_tables_that_agree_on_what_cannot_be(
    tmp_path: Path, what: str | None, page: int, places: tuple[int, ...], sizes: tuple[int, ...], table: int
) -> None:
    path = tmp_path / "train.beton"
    compose(path, page, places, sizes, table)
    if what is None:
        assert validate(path).images == 3
    else:
        with pytest.raises(DataError, match=what):
            validate(path)


@pytest.mark.parametrize("text", ["", "abc  train.beton", "z" * 64, "\xff" * 64])
def test_a_sidecar_without_digest_is_refused(base: Base, tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.beton"
    path.write_bytes(base.content)
    sidecar(path).write_text(text, "latin-1")
    with pytest.raises(DataError, match=r"train\.beton\.sha256"):
        validate(path)


def test_numbers_of_a_hostile_file_take_no_memory(base: Base, tmp_path: Path) -> None:
    """The tables are bounded by the file's length, whatever it says."""
    import tracemalloc

    hostile = [mutant for mutant in structural(base) if mutant.name.startswith(("header samples", "header alloc"))]
    path = tmp_path / "train.beton"
    tracemalloc.start()
    for mutant in hostile:
        path.write_bytes(mutant.content)
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        assert refused(path)
        assert tracemalloc.get_traced_memory()[1] - held < 1 << 20, mutant.name
    tracemalloc.stop()


def test_padded_jpegs_differ_in_size_alone(base: Base) -> None:
    """What the mutants put in a JPEG's place is a sound JPEG."""
    from hardfast.loaders.beton.jpeg import jpeg_size

    for size, length in itertools.product(((8, 8), (64, 96)), (8_000, 130_000)):
        content = padded_jpeg(size, length)
        assert (len(content), jpeg_size(content)) == (length, size)
