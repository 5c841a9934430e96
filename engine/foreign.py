"""Classifiers whose weights were trained elsewhere: which architecture a file holds, and a strict load into it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from . import console
from .errors import CheckpointError, UsageError
from .models import NAMES, ModelOptions, NetShape, build_model, channels_last
from .models.options import Shortcut
from .named_tensors import load_strictly
from .weight_file import WeightFile, read_weight_file

UNUSED = "sub_block1."  # WideResNets descended from TRADES' code hold a stage that no forward pass uses
COUNTER = "num_batches_tracked"
RECOGNISED = 0.5  # share of an architecture's names that a file must have to be taken for a damaged one of it
FIX = "give the file's architecture with --model.name, or fetch it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignOptions:
    """The classifier of a weight file."""

    name: str | None = None
    """Its architecture, as for `hardfast train`; by default the one whose tensors have the names and shapes of the
    file's. Whether preact_resnet18 has a final BN is read off the file."""

    shortcut: Shortcut = "activated"
    """What preact_resnet18's 1x1 shortcuts read, which no file says: input for Wong et al. and N-FGSM, activated for
    Rice et al. and the release of FGSM-SDI."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean taken from images in [0, 1]; by default the file's own, or none."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation the images are divided by; by default the file's own, or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignNet:
    """A loaded classifier.

    Attributes:
        net: eval mode, float32, on the CPU.
        options: what it was built from.
        shape: its channels and classes.
        sha256: of the file.
        notes: what was read off the file, assumed or undone, a line each.
    """

    net: nn.Module
    options: ModelOptions
    shape: NetShape
    sha256: str
    notes: tuple[str, ...]


def load_weights(
    path: Path | str,
    model: str | None = None,
    *,
    shortcut: Shortcut = "activated",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    shape: NetShape | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The classifier of a weight file from elsewhere: eval mode, float32 NCHW images in [0, 1] in, logits out.

    Prints a line for whatever was guessed, cast or unwrapped.

    Args:
        path: a .safetensors file or what torch.save wrote, read as plain data: nothing in it is executed.
        model: the architecture; by default the one that the file's names and shapes are of.
        shortcut, mean, std: see `ForeignOptions`.
        shape: channels and classes, for a net of timm's or of your own; those of the other nets are read off the file.
        device: where the net is put.

    Raises:
        UsageError: there is no such file, model, or normalisation.
        CheckpointError: the file is damaged, holds more than plain data, or is of another net.
    """
    found = read_foreign(path, ForeignOptions(name=model, shortcut=shortcut, mean=mean, std=std), shape=shape)
    for note in found.notes:
        console.line(f"{path}: {note}")
    return found.net.to(device)


def read_foreign(
    path: Path | str,
    asked: ForeignOptions,
    *,
    shape: NetShape | None = None,
    image_size: tuple[int, int] | None = None,
) -> ForeignNet:
    """What `load_weights` does, with everything that was found out.

    Args:
        path: the file.
        asked: what is known of its net.
        shape: channels and classes, for nets of timm's or the user's own.
        image_size: (height, width) of the images, likewise.
    """
    with torch.random.fork_rng(devices=[]):  # the weights that nets are built with are drawn in vain
        return _read(Path(path), asked, shape, image_size)


def _read(path: Path, asked: ForeignOptions, shape: NetShape | None, image_size: tuple[int, int] | None) -> ForeignNet:
    own_names: tuple[str, ...] = ()
    if asked.name is not None and ModelOptions(name=asked.name).name not in NAMES:
        if shape is None:
            raise UsageError(f"model.name '{asked.name}': say its channels and classes with shape=NetShape(...)")
        own_names = tuple(build_model(ModelOptions(name=asked.name), shape, image_size=image_size).state_dict())
    file = read_weight_file(path, own_names=own_names)
    notes = list(file.notes)
    name = asked.name
    listing: dict[str, torch.Size] = {}
    if name is None:
        name, listing = _recognised(file)
    elif not own_names:
        listing = _listing(ModelOptions(name=name))
    options = _options(file, asked, name, notes)
    if listing:
        shape = _shape(file, options, listing)
    assert shape is not None
    if asked.name is None:
        facts = f"num_classes {shape.num_classes}, in_channels {shape.in_channels}"
        notes.append(f"taken for {_called(options)} by its names and shapes ({facts}); if it is not, give --model.name")
    net = build_model(options, shape, image_size=image_size)
    tensors = _without_what_no_pass_reads(net, file.tensors, notes)
    load_strictly(net, tensors, file.path, kind=_called(options), fix=FIX)
    return ForeignNet(
        net=channels_last(net).eval(), options=options, shape=shape, sha256=file.sha256, notes=tuple(notes)
    )


def _options(file: WeightFile, asked: ForeignOptions, name: str, notes: list[str]) -> ModelOptions:
    """What to build: what was asked for, and the rest as the file has it."""
    mean = _constants("mean", asked.mean, file.mean, notes)
    std = _constants("std", asked.std, file.std, notes)
    if name != "preact_resnet18":
        return ModelOptions(name=name, shortcut=asked.shortcut, mean=mean, std=std)  # refuses a shortcut
    if asked.shortcut == "activated":
        notes.append(
            "its 1x1 shortcuts are taken to read the activated input, which no file says; the nets of Wong et al. and "
            "N-FGSM need --model.shortcut input"
        )
    final_bn = _has_final_bn(file)
    return ModelOptions(name=name, final_bn=final_bn, shortcut=asked.shortcut, mean=mean, std=std)


def _constants(
    field: str, asked: tuple[float, ...] | None, own: tuple[float, ...] | None, notes: list[str]
) -> tuple[float, ...] | None:
    """The mean or deviation that was asked for, with a note where it replaces the file's own; else the file's."""
    if asked == ():
        raise UsageError(f"model.{field} names no value: give one for every channel, or leave out --model.{field}")
    if asked is None:
        return own
    if own is not None and asked != own:
        notes.append(f"normalised by --model.{field} instead of the file's own")
    return asked


def _has_final_bn(file: WeightFile) -> bool:
    return any(key.startswith("bn.") for key in file.tensors)


def _recognised(file: WeightFile) -> tuple[str, dict[str, torch.Size]]:
    """The name and the listing of the architecture whose tensors the file has, or else most of them.

    Raises:
        CheckpointError: it has half of none's.
    """
    shares: dict[str, float] = {}
    listings = {}
    held = sum(not key.startswith(UNUSED) for key in file.tensors)
    for name in NAMES:
        final_bn = name != "preact_resnet18" or _has_final_bn(file)
        try:
            listings[name] = wanted = _listing(ModelOptions(name=name, final_bn=final_bn))
        except UsageError:  # torchvision is missing: resnet50 is not among the guesses
            continue
        ends = _ends(wanted)  # their shapes depend on the data set
        fitting = [
            key in file.tensors and (key in ends or file.tensors[key].shape == size) for key, size in wanted.items()
        ]
        shares[name] = sum(fitting) / max(len(wanted), held)
        if shares[name] == 1:
            return name, wanted
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < RECOGNISED:
        first = ", ".join(list(file.tensors)[:3])
        raise CheckpointError(
            f"{file.path} holds none of {', '.join(shares)} (its tensors begin with {first}): name its architecture "
            "with --model.name, like timm:NAME or package.module:factory"
        )
    return best, listings[best]


@cache  # a net is drawn for it, the largest in half a second
def _listing(options: ModelOptions) -> dict[str, torch.Size]:
    """Names and shapes of a net's tensors, for any channels and classes; not to be changed."""
    state = build_model(options, NetShape(num_classes=10, in_channels=3)).state_dict()
    return {name: value.shape for name, value in state.items()}


def _ends(listing: dict[str, torch.Size]) -> tuple[str, str, str]:
    """The names of the first convolution, of the last layer's weights and of its biases."""
    first = next(name for name, size in listing.items() if len(size) == 4)
    last = [name for name, size in listing.items() if len(size) == 2][-1]
    return first, last, f"{last.removesuffix('weight')}bias"


def _shape(file: WeightFile, options: ModelOptions, listing: dict[str, torch.Size]) -> NetShape:
    """Channels and classes as the file's first and last layer have them."""
    first, last, _ = _ends(listing)
    for name, dims in ((first, 4), (last, 2)):
        if name not in file.tensors:
            raise CheckpointError(f"{file.path} has no tensor '{name}', which {_called(options)} has: {FIX}")
        if file.tensors[name].dim() != dims or 0 in file.tensors[name].shape:
            found = tuple(file.tensors[name].shape)
            raise CheckpointError(f"{file.path}: '{name}' has shape {found}, which no {_called(options)} has: {FIX}")
    return NetShape(num_classes=file.tensors[last].shape[0], in_channels=file.tensors[first].shape[1])


def _without_what_no_pass_reads(net: nn.Module, tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The file's tensors less a WideResNet's unused stage, and with the counters of BN that old files lack."""
    wanted = net.state_dict()
    unused = [name for name in tensors if name.startswith(UNUSED)]
    if unused and not any(name.startswith(UNUSED) for name in wanted):
        notes.append(f"{len(unused)} tensors of {UNUSED}* left out: no forward pass reads them")
        tensors = {name: value for name, value in tensors.items() if name not in unused}
    if not any(name.endswith(COUNTER) for name in tensors):
        tensors = tensors | {name: value for name, value in wanted.items() if name.endswith(COUNTER)}
    return tensors


def _called(options: ModelOptions) -> str:
    without = options.name == "preact_resnet18" and not options.final_bn
    return f"{options.name} without final BN" if without else options.name
