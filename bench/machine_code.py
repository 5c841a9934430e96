"""What the kernels become on a GPU that is not there: compiled ahead of time, read back from the machine code.

`hardfast bench machine-code` writes the table of bench/README.md. Triton brings the assembler and the disassembler, so
this runs on any Linux machine; it needs a process of its own without `TRITON_INTERPRET`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.launch import OPTIONS, Launch
from .kernel_cases import CASES, Case, Shape

ARCHITECTURES = (70, 80, 90)
SHAPE = Shape(batch=128, size=32)
POINTERS = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel on one architecture.

    Attributes:
        case: the kernel and its variant.
        architecture: compute capability, 90 for sm_90.
        registers: of a thread.
        stack, local: bytes of a thread that lie in slow memory: spilled registers and run-time indexed arrays.
        shared: bytes of shared memory of a program.
        instructions: in all.
        loads, stores: how many global loads and stores there are of each width in bits.
        bytes_per_element: device memory read and written, per pixel and channel of the batch.
    """

    case: Case
    architecture: int
    registers: int
    stack: int
    local: int
    shared: int
    instructions: int
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    bytes_per_element: float


def compile_launch(launch: Launch, architecture: int) -> Any:
    """The compiled kernel that `launch.run()` would use on such a GPU.

    Arguments are specialised as Triton does at run time: pointers and integers that 16 divides are declared so, which
    is what allows wide loads; an integer 1 and a missing tensor are constants.
    """
    names = launch.kernel.arg_names
    signature, constants, attributes = {}, dict(launch.constants), {}
    for place, name in enumerate(names):
        value = launch.constants.get(name, launch.arguments.get(name))
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if (value.data_ptr() if isinstance(value, Tensor) else value) % 16 == 0 and not isinstance(value, float):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(OPTIONS))


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def inspect(case: Case, architecture: int, shape: Shape = SHAPE) -> MachineCode:
    """Compiles one case for one architecture and reads its machine code."""
    launch = case.build(shape, torch.device("cpu"), 0).launch
    compiled = compile_launch(launch, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of the resources of {case.name}: {usage.strip()}")
    registers, stack, _, local = (int(number) for number in found.groups())
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    local += 1000 * sum(opcode.split(".")[0] in ("LDL", "STL") for opcode in opcodes)
    return MachineCode(
        case=case,
        architecture=architecture,
        registers=registers,
        stack=stack,
        local=local,
        shared=compiled.metadata.shared,
        instructions=len(opcodes),
        loads=_widths(opcodes, "LDG"),
        stores=_widths(opcodes, "STG"),
        bytes_per_element=launch.bytes / shape.elements,
    )
