"""Where a run runs: device, versions, revision, and the settings that decide its numerics."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..loaders import memory
from ..loaders.option_types import shown
from .errors import UsageError
from .execution import Execution
from .numerics import Fingerprint

# What turns files into pixels, by loader: decoders of two versions may differ by a grey level or two.
DECODERS = {
    "resident": ("pillow",),
    "torch": ("torchvision", "pillow"),
    "ffcv": ("ffcv", "opencv-python"),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
}


def choose_device(name: str) -> tuple[torch.device, str]:
    """(device, why) for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the name is none of these, or there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
        return torch.device("cpu"), "no CUDA device found"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {shown(name)} is not a device: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device {name} is not there: {torch.cuda.device_count()} CUDA devices are visible, use cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name} is not supported: choose auto, cpu, cuda or cuda:N")
    return device, "as asked"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, roughly."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = memory.free_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if free is None else free


def describe_environment(
    device: torch.device, execution: Execution | None = None, *, loader: str | None = None
) -> dict[str, Any]:
    """What environment.json holds of a start.

    Args:
        device: where the work is done.
        execution: how steps are executed; by default eagerly in fp32.
        loader: what reads the images, where something does.
    """
    execution = Execution(device=device) if execution is None else execution
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": metadata.version("numpy"),
        "numerics": fingerprint(device, execution, loader=loader),
    }


def fingerprint(device: torch.device, execution: Execution, *, loader: str | None = None) -> Fingerprint:
    """What decides a run's numbers to the last bit; arguments as of `describe_environment`."""
    cuda = device.type == "cuda"
    found: Fingerprint = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "triton": _version("triton") if cuda else None,  # on a CPU the kernels are plain PyTorch
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_model": cpu_model(),
        "hardfast": own_version(),
        "threads": torch.get_num_threads(),
        "precision": execution.precision,
        "memory_format": "channels_last",
        "execution": execution.mode,
        "tf32": execution.tf32,
        "pad_channels": execution.pad_channels,
        "deterministic": execution.deterministic or torch.are_deterministic_algorithms_enabled(),
    }
    if loader is not None:
        versions = [f"{package} {_version(package)}" for package in DECODERS[loader] if _version(package)]
        found |= {"loader": loader, "decoders": ", ".join(versions)}
    return found


@cache
def cpu_model() -> str | None:
    """Vendor and model as Linux tells them: libraries choose their code by them; None where it does not."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None


@cache  # asked at every save; half a millisecond for each package
def _version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    """The version of hardfast as it is installed; `source tree` where it is not."""
    return _version("hardfast") or "source tree"


def wait_for(device: torch.device) -> None:
    """Until a GPU has done all it was given; at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_state(device: torch.device) -> dict[str, str | float | None]:
    """Power limit in W, clocks of this moment in MHz, and driver, as nvidia-smi tells them; None where it does not."""
    fields = {
        "power_limit_w": "power.limit",
        "sm_clock_mhz": "clocks.sm",
        "memory_clock_mhz": "clocks.mem",
        "driver": "driver_version",
    }
    state: dict[str, str | float | None] = dict.fromkeys(fields)
    if device.type != "cuda":
        return state
    identity = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")  # our numbers may not be its
    query = ["nvidia-smi", f"--id=GPU-{identity}", f"--query-gpu={','.join(fields.values())}"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return state
    words = done.stdout.strip().split(", ")
    if len(words) != len(fields):  # a message instead of values
        return state
    for name, word in zip(fields, words, strict=True):
        if name == "driver":
            state[name] = word
        elif word.replace(".", "").isdecimal():  # not `[N/A]`
            state[name] = float(word)
    return state


def git_revision() -> str | None:
    """The commit of the source tree this package runs from, with `+` where files differ from it; None outside one."""
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not the repository of a project we are only installed in
        return git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
