"""The Triton kernels compiled for a GPU that need not be there: registers, spilled bytes and instructions.

python -m benchmarks.triton_code [--capability 90]

Each kernel is compiled as it is launched for a Mamba layer in float32: 16 states, channels adjacent in memory. Counts
are of the code, whose loops cover a block of `steps` steps.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.measure import Row, environment, write_rows
from nnunet_ext.ops import (
    triton_backward_kernels,
    triton_conv,
    triton_conv_kernels,
    triton_kernels,
    triton_scan,
)

NAME = "triton_code"
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = 32
_STATES = 16
_SCAN = {
    "ADD": False,
    "SOFTPLUS": True,
    "EVEN": True,
    "CHUNK": triton_scan.CHUNKS[0],
    "SAVE_EVERY": triton_scan.save_interval(_STATES),
    "TILE": triton_scan.TILE,
    "N": _STATES,
    "LEVELS": (_STATES - 1).bit_length(),
}
_CONVOLUTION = {"WIDTH": 4, "SILU": True, "TILE": triton_conv.TILE, "CHUNK": triton_conv.CHUNK}
_STRIDES = {
    **dict.fromkeys(("u", "delta", "z", "y", "grad", "du", "ddelta", "dz", "A"), 2),
    **dict.fromkeys(("B", "C", "last_state", "saved", "dBC"), 3),
    "carry": 4,
    "initial": None,
}
"""Strides that come with the tensors of the scan's kernels; None: it is not given."""
_POINTERS = ("bias", "D", "ends", "totals", "dA", "dD", "dbias", "scratch", "sums", "weight")
_ALIGNED = [["tt.divisibility", 16]]
_COUNTED = {"loads": r"\bLDG", "loads_of_four": r"\bLDG\.E\.128", "exponentials": r"\bMUFU\.EX2", "stores": r"\bSTG"}


def compiled(kernel: Any, constants: Mapping[str, Any], options: Mapping[str, Any], capability: int) -> bytes:
    """The binary of a kernel whose pointers and strides are aligned."""
    signature: dict[str, Any] = {}
    values: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    convolves = kernel in (triton_conv_kernels.convolve, triton_conv_kernels.convolve_backward)
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[place,] = "constexpr", constants[name]
        elif convolves and name in ("x", "y", "grad_y", "grad_x"):
            # Batch, channel and step; the channel's stride is 1, for which a kernel is compiled anew.
            signature[name], values[place, 2] = ("*fp32", "i32", "constexpr", "i32"), 1
            attributes |= {(place, item): _ALIGNED for item in (0, 1, 3)}
        elif name in _POINTERS:
            signature[name], attributes[place,] = "*fp32", _ALIGNED
        elif _STRIDES.get(name, 0) is None:
            signature[name], values[place,] = "constexpr", None
        elif name in _STRIDES:
            signature[name] = ("*fp32", *["i32"] * _STRIDES[name])
            attributes |= {(place, item): _ALIGNED for item in range(len(signature[name]))}
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=dict(options)).asm["cubin"]


def counts(binary: bytes) -> dict[str, int]:
    """Registers of a thread, bytes that it spills, and instructions of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        usage = _printed("cuobjdump", "-res-usage", str(file))
        code = _printed("nvdisasm", "-c", str(file))
    instructions = [line for line in code.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
    found = {"registers": r"REG:(\d+)", "stack_bytes": r"STACK:(\d+)"}
    numbers = {name: int(re.findall(pattern, usage)[-1]) for name, pattern in found.items()}
    kinds = {name: sum(bool(re.search(kind, line)) for line in instructions) for name, kind in _COUNTED.items()}
    return {**numbers, "instructions": len(instructions), **kinds}


def _printed(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def rows(capability: int) -> list[Row]:
    kernels: list[tuple[Any, dict[str, Any], Mapping[str, Any], int]] = [
        (triton_kernels.chunk_ends, _SCAN, triton_scan.LAUNCH, triton_scan.BLOCK),
        (triton_kernels.scan, _SCAN, triton_scan.LAUNCH, triton_scan.BLOCK),
        (triton_backward_kernels.chunk_ends_backward, _SCAN, triton_scan.LAUNCH, triton_scan.BACKWARD_BLOCK),
        (triton_backward_kernels.scan_backward, _SCAN, triton_scan.LAUNCH, triton_scan.BACKWARD_BLOCK),
        (triton_conv_kernels.convolve, _CONVOLUTION, triton_conv.LAUNCH, triton_conv.STEPS),
        (triton_conv_kernels.convolve_backward, _CONVOLUTION, triton_conv.LAUNCH, triton_conv.STEPS),
    ]
    return [
        {
            "kernel": kernel.__name__,
            "target": f"sm_{capability}",
            "steps": steps,
            **counts(compiled(kernel, constants | {"BLOCK": steps, "STEPS": steps}, options, capability)),
            "triton": triton.__version__,
        }
        for kernel, constants, options, steps in kernels
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="90 for H100 and H200 (default: %(default)s)")
    arguments = parser.parse_args(argv)
    where = {key: environment()[key] for key in ("torch", "python", "date", "commit")}
    write_rows(NAME, rows(arguments.capability), where)


if __name__ == "__main__":
    main()
