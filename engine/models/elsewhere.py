"""Nets that are not this package's: timm's, and the user's own by the dotted path of a factory."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import UsageError
from .normalized import NormalizedNet
from .options import TIMM, NetShape

PROBED_SIDES = (32, 64, 224)  # pixels, where nobody says how large the images are


class NetFromElsewhere(NormalizedNet):
    """Any net, with the normalisation in front of it; its state dict has the names of the net alone.

    Args:
        net: images [N, C, H, W] to logits [N, num_classes].
        mean, std: per-channel normalisation, applied before the net; None is none.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        super().__init__(mean, std)
        self.net = net

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}net.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def net_from_elsewhere(
    name: str,
    shape: NetShape,
    *,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: tuple[int, int] | None,
) -> NetFromElsewhere:
    """A freshly initialised net of timm's (`timm:NAME`) or of the user's own factory (`package.module:factory`).

    Args:
        name: model.name.
        shape: passed on as num_classes and in_channels (timm: in_chans).
        mean, std: see `NetFromElsewhere`.
        image_size: (height, width) of the images it has to run on, if known.

    Raises:
        UsageError: there is no such net, or it cannot be used: see `check_net`.
    """
    net = _of_timm(name, shape) if name.startswith(TIMM) else _of_factory(name, shape)
    wrapped = NetFromElsewhere(net, mean, std)
    check_net(wrapped, name, shape, image_size)
    return wrapped


def _of_timm(name: str, shape: NetShape) -> nn.Module:
    """timm's net with fresh weights: nothing is downloaded."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision was built for another torch
        raise UsageError(
            f"model.name '{name}' needs timm, which cannot be imported ({_first_line(error)}): pip install timm"
        ) from None
    architecture = name.removeprefix(TIMM)
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        fix = f"did you mean {TIMM}{close[0]}?" if close else "see timm.list_models()"
        raise UsageError(f"model.name '{name}': timm {timm.__version__} has no net of that name; {fix}")
    try:
        made = timm.create_model(
            architecture, pretrained=False, num_classes=shape.num_classes, in_chans=shape.in_channels
        )
    except Exception as error:  # whatever one of a thousand constructors raises
        raise UsageError(f"model.name '{name}' cannot be made ({_told(error)})") from error
    assert isinstance(made, nn.Module)
    return made


def _of_factory(name: str, shape: NetShape) -> nn.Module:
    """What the user's factory returns."""
    factory = _found(name)
    arguments = {"num_classes": shape.num_classes, "in_channels": shape.in_channels}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"model.name '{name}' must be callable with num_classes and in_channels: {error}") from None
    except ValueError:  # a callable without a signature: it will say itself
        pass
    try:
        net = factory(**arguments)
    except Exception as error:
        raise UsageError(f"model.name '{name}': the factory failed ({_told(error)})") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"model.name '{name}' must return an nn.Module, not {type(net).__name__}")
    return net


def _found(name: str) -> Any:
    """The callable at a dotted path, from what is installed or else from the current directory."""
    module_name, _, path = name.partition(":") if ":" in name else name.rpartition(".")
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):  # an installed command does not look there; last, so that it hides nothing
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"model.name '{name}': {module_name} needs {error.name}, which is not installed") from None
        raise UsageError(
            f"model.name '{name}': there is no module {error.name}, neither installed nor in {here}: "
            "start in the folder that holds it, or set PYTHONPATH"
        ) from None
    except Exception as error:
        raise UsageError(f"model.name '{name}': {module_name} cannot be imported ({_told(error)})") from error
    for part in path.split("."):
        if not hasattr(found, part):
            place = getattr(found, "__file__", None) or module_name
            raise UsageError(f"model.name '{name}': there is no '{part}' in {place}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"model.name '{name}' must be a function or a class, not {type(found).__name__}")
    return found


def check_net(net: nn.Module, name: str, shape: NetShape, image_size: tuple[int, int] | None = None) -> None:
    """Refuses a net that cannot be trained: run on a copy, in train and in eval mode, with two grey images.

    Args:
        net: on the CPU; left as it is.
        name: model.name, for the message.
        shape: channels of the images and number of the logits.
        image_size: (height, width) of the images; None tries `PROBED_SIDES`, and a net that runs on none of them is
            not refused, for it may want yet another size.

    Raises:
        UsageError: it has no weights, cannot be copied or saved, does not run on such images, or returns something
            else than a float tensor [N, num_classes].
    """
    _check_tensors(net, name)
    try:
        twin = copy.deepcopy(net)
    except Exception as error:
        raise UsageError(
            f"model.name '{name}' cannot be copied, and attacks run on a copy without weight gradients ({_told(error)})"
        ) from error
    for height, width in [(side, side) for side in PROBED_SIDES] if image_size is None else [image_size]:
        images = torch.full((2, shape.in_channels, height, width), 0.5)
        try:
            outputs = {mode: _outputs(twin, images, training=mode == "train") for mode in ("train", "eval")}
        except Exception as error:
            if image_size is None:
                continue
            raise UsageError(
                f"model.name '{name}' does not run on images of {shape.in_channels}x{height}x{width} ({_told(error)})"
            ) from error
        for mode, out in outputs.items():
            _check_output(out, name, shape, mode)
        return


def _check_tensors(net: nn.Module, name: str) -> None:
    """What the optimiser and a checkpoint need."""
    lazy = next((key for key, value in (*net.named_parameters(), *net.named_buffers()) if is_lazy(value)), None)
    if lazy is not None:
        raise UsageError(f"model.name '{name}': {lazy} has no shape yet; give lazy layers their sizes")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError(f"model.name '{name}' has no weights to train")
    seen: dict[int, str] = {}
    for key, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(f"model.name '{name}': '{key}' in its state dict is no tensor, which no checkpoint holds")
        if value.numel() and seen.setdefault(value.data_ptr(), key) != key:
            raise UsageError(
                f"model.name '{name}': '{seen[value.data_ptr()]}' and '{key}' share their memory, and a checkpoint "
                "holds every tensor once: give each its own"
            )


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor, *, training: bool) -> Any:
    with torch.random.fork_rng(devices=[]):  # dropout draws
        return net.train(training)(images)


def _check_output(out: Any, name: str, shape: NetShape, mode: str) -> None:
    wanted = f"logits of shape [N, {shape.num_classes}] for {shape.num_classes} classes"
    if not isinstance(out, Tensor):
        raise UsageError(f"model.name '{name}' must return {wanted}; in {mode} mode it returns a {type(out).__name__}")
    if tuple(out.shape) != (2, shape.num_classes) or not out.is_floating_point():
        found = f"{out.dtype} {list(out.shape)} for two images"
        raise UsageError(f"model.name '{name}' must return {wanted}; in {mode} mode it returns {found}")


def _told(error: Exception) -> str:
    """An error of somebody else's code in one line, with the place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}{place}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
