"""What the kernels become on a GPU that is not there: compiled ahead of time and read back from the machine code.

`hardfast bench machine-code` writes the table of bench/README.md. Triton brings the assembler, so this runs on any
Linux machine, in a process without `TRITON_INTERPRET`.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..engine import console
from ..engine.errors import UsageError
from ..engine.run_folder import write_whole
from ..kernels.launch import Launch
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
    torch.float64: "*fp64",
}
# Instructions of 16 bytes, Volta to Hopper: the lowest 9 bits are the operation, bits 73 to 75 the width of an access.
# nvdisasm does not read sm_70 any more, so we do; on sm_80 and sm_90 both must find the same.
MEMORY = {0x181: "LDG", 0x186: "STG", 0x183: "LDL", 0x187: "STL"}
WIDTHS = {0: 8, 1: 8, 2: 16, 3: 16, 4: 32, 5: 64, 6: 128}
INEXACT = re.compile(r"\bfma\.\S+|\bdiv\.full\S*|\b\w+\.(?:\w+\.)*(?:approx|ftz)\b")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel on one architecture.

    Attributes:
        case: the kernel and its variant.
        architecture: compute capability, 90 for sm_90.
        registers: of a thread.
        stack: bytes of a thread for spilled registers and arrays that are indexed at run time.
        shared: bytes of shared memory of a program.
        instructions: of the whole kernel.
        inexact: floating-point instructions in its PTX that do not round as the references do: fused multiply-adds,
            approximate functions, and what takes subnormals for zeros.
        accesses: how often each access to global (LDG, STG) and local memory (LDL, STL) stands in the code, by
            operation and width in bits.
    """

    case: Case
    architecture: int
    registers: int
    stack: int
    shared: int
    instructions: int
    inexact: int
    accesses: Mapping[tuple[str, int], int]

    @property
    def local(self) -> int:
        """Loads and stores of local memory, which lies in device memory: spills."""
        return sum(count for (operation, _), count in self.accesses.items() if operation in ("LDL", "STL"))


def compile_launch(launch: Launch, architecture: int) -> Any:
    """The compiled kernel that `launch.run()` would use on such a GPU.

    Arguments are specialised as Triton does at run time: pointers and integers that 16 divides are declared so, which
    is what allows wide loads; an integer 1 and a missing tensor are constants.
    """
    signature, constants, attributes = {}, dict(launch.constants), {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, value)
            continue
        signature[name] = _type_of(value)
        address = value.data_ptr() if isinstance(value, Tensor) else value
        if isinstance(address, int) and address % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def inspect(case: Case, architecture: int, shape: Shape = SHAPE) -> MachineCode:
    """Compiles one case for one architecture and reads its machine code.

    Raises:
        RuntimeError: our reading of the instructions is not the disassembler's.
    """
    compiled = compile_launch(case.build(shape, torch.device("cpu"), 0).launch, architecture)
    cubin = compiled.asm["cubin"]
    usage = disassembler("cuobjdump", "-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no registers of {case.name}: {usage.strip()}")
    instructions = list(_instructions(cubin))
    accesses = Counter(access for access in map(_access, instructions) if access is not None)
    if architecture >= 80 and accesses != disassembled_accesses(cubin):
        raise RuntimeError(f"{case.name} on sm_{architecture}: read {accesses}, not {disassembled_accesses(cubin)}")
    return MachineCode(
        case=case,
        architecture=architecture,
        registers=int(found[1]),
        stack=int(found[2]),
        shared=compiled.metadata.shared,
        instructions=len(instructions),
        inexact=len(INEXACT.findall(compiled.asm["ptx"])),
        accesses=accesses,
    )


def disassembler(tool: str, option: str, cubin: bytes) -> str:
    """What cuobjdump or nvdisasm, as Triton ships them, say of a cubin."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, option, file.name], capture_output=True, text=True, timeout=60).stdout


def disassembled_accesses(cubin: bytes) -> Counter[tuple[str, int]]:
    """`MachineCode.accesses` by nvdisasm, for sm_75 and newer."""
    found: Counter[tuple[str, int]] = Counter()
    for operation, suffixes in re.findall(r"\b(LDG|STG|LDL|STL)((?:\.\w+)+)", disassembler("nvdisasm", "-c", cubin)):
        width = next((int(digits) for digits in re.findall(r"\.[US]?(8|16|64|128)\b", suffixes)), 32)
        found[operation, width] += 1
    return found


def _instructions(cubin: bytes) -> Iterator[tuple[int, int]]:
    """The 16-byte instructions, as two 64-bit words, of the ELF file's `.text` sections."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + number * size) for number in range(count)]
    names_at = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if cubin.startswith(b".text.", names_at + name):
            yield from struct.iter_unpack("<QQ", cubin[offset : offset + length])


def _access(instruction: tuple[int, int]) -> tuple[str, int] | None:
    low, high = instruction
    operation = MEMORY.get(low & 0x1FF)
    return None if operation is None else (operation, WIDTHS[high >> 9 & 7])


def inspect_all(
    cases: Sequence[Case] = CASES, architectures: Sequence[int] = ARCHITECTURES
) -> dict[str, dict[int, MachineCode]]:
    """Every case on every architecture, by the case's name."""
    found: dict[str, dict[int, MachineCode]] = {}
    with console.bar(len(cases) * len(architectures), "compiling", "kernels") as bar:
        for case in cases:
            found[case.name] = {}
            for architecture in architectures:
                found[case.name][architecture] = inspect(case, architecture)
                bar.update()
    return found


def rows(found: Mapping[str, Mapping[int, MachineCode]]) -> list[dict[str, Any]]:
    """The same for machines: one object for each case and architecture."""
    return [
        {
            "case": name,
            "kernel": code.case.kernel,
            "variant": code.case.variant,
            "architecture": architecture,
            "registers": code.registers,
            "stack": code.stack,
            "local": code.local,
            "shared": code.shared,
            "instructions": code.instructions,
            "inexact": code.inexact,
            "loads": _by_width(code, "LDG"),
            "stores": _by_width(code, "STG"),
            "bytes_per_element": bytes_per_element(code.case),
        }
        for name, codes in found.items()
        for architecture, code in codes.items()
    ]


def _by_width(code: MachineCode, operation: str) -> dict[int, int]:
    """How many accesses of one kind there are, by their width in bits, widest first."""
    found = {width: count for (op, width), count in code.accesses.items() if op == operation}
    return dict(sorted(found.items(), reverse=True))


def bytes_per_element(case: Case, shape: Shape = SHAPE) -> float:
    """Device memory that a case reads and writes, per pixel and channel of the batch."""
    return case.build(shape, torch.device("cpu"), 0).launch.bytes / shape.elements


def markdown(found: Mapping[str, Mapping[int, MachineCode]]) -> str:
    """The table of bench/README.md."""
    architectures = list(next(iter(found.values())))
    newest = architectures[-1]
    registers = [f"registers sm_{architecture}" for architecture in architectures]
    header = ["kernel", "variant", "bytes / element", *registers, "spills", f"loads sm_{newest}", f"stores sm_{newest}"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 4) + "---|---|"]
    for codes in found.values():
        case, code = codes[newest].case, codes[newest]
        cells = [f"`{case.kernel}`", case.variant, f"{bytes_per_element(case):.3g}"]
        cells += [str(codes[architecture].registers) for architecture in architectures]
        cells += [str(sum(c.local + c.stack for c in codes.values())), _widths(code, "LDG"), _widths(code, "STG")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _widths(code: MachineCode, operation: str) -> str:
    """Like `4 x 128, 2 x 32`."""
    return ", ".join(f"{count} x {width}" for width, count in _by_width(code, operation).items())


BEGIN, END = "<!-- hardfast bench machine-code -->", "<!-- end -->"


def write_into(readme: Path, table: str) -> None:
    """Puts the table between its two marks in a Markdown file.

    Raises:
        UsageError: the file has not both marks.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{readme} has no place for the table: it needs a line `{BEGIN}` and below it `{END}`")
    write_whole(readme, f"{before}{BEGIN}\n{table}\n{END}{after}")
