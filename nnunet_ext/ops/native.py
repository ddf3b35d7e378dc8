"""The optional C extension: found, chosen for the processor, and called through ctypes.

`setup.py` compiles `csrc/*.c` once for each instruction set that the compiler knows, without any link to Python
or torch, so that one build serves every version of both. Where no compiler was there, no library is there either,
and the operators use PyTorch.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""From fast to general; a processor that can run one can run those behind it."""

_FOLDER = Path(__file__).parent / "csrc"


@dataclass(frozen=True)
class NativeLibrary:
    """A loaded library.

    Attributes:
        instruction_set: One of `INSTRUCTION_SETS`.
        functions: The library; its functions take pointers to structures and return 0.
    """

    instruction_set: str
    functions: ctypes.CDLL

    @property
    def openmp(self) -> bool:
        """Whether it was compiled with OpenMP, and so uses several threads."""
        return bool(self.functions.selective_scan_openmp())

    def has(self, name: str) -> bool:
        """Whether it has a function; one that was compiled before the function was written has not."""
        return hasattr(self.functions, name)

    def call(self, name: str, argument: ctypes.Structure) -> None:
        """Calls a function of the library.

        Raises:
            MemoryError: if it found no memory for its work space.
        """
        if getattr(self.functions, name)(ctypes.byref(argument)):
            raise MemoryError(f"{name} found no memory for its work space")


@cache
def load_native(instruction_set: str) -> NativeLibrary | None:
    """The library compiled for an instruction set, or None if it was not built or cannot be loaded here."""
    path = _FOLDER / f"{instruction_set}.so"
    if not path.is_file():
        return None
    try:
        # torch, imported above, has loaded its OpenMP runtime, which the library then shares.
        return NativeLibrary(instruction_set, ctypes.CDLL(str(path)))
    except OSError:
        return None


def usable_instruction_sets() -> tuple[str, ...]:
    """Those that this processor has, the fastest first (`ATEN_CPU_CAPABILITY` bounds it, as it bounds torch)."""
    capability = torch.backends.cpu.get_cpu_capability()
    first = {"AVX512": 0, "AVX2": 1}.get(capability, 2)
    return INSTRUCTION_SETS[first:]


@cache
def native_library() -> NativeLibrary | None:
    """The fastest library that was built and that this processor can run; None if there is none."""
    return next(filter(None, map(load_native, usable_instruction_sets())), None)


class Strided(ctypes.Structure):
    """`tensor` of csrc/tile.h: (batch, group, row, time) strides in elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("time", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, x: Tensor) -> "Strided":
        """Of a (batch, row, time) or (batch, group, row, time) tensor that `readable` gave."""
        batch, group, row, time = x.stride() if x.ndim == 4 else (x.stride(0), 0, *x.stride()[1:])
        # A row of length 1 may carry any stride.
        return cls(x.data_ptr(), batch, group, 1 if x.shape[-2] == 1 and time != 1 else row, time)


def readable(x: Tensor) -> Tensor:
    """`x` itself if its rows lie beside each other or are contiguous in time, as the C code needs, else a copy."""
    return x if 1 in x.stride()[-2:] else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    """Address of a contiguous tensor's first value; None for None."""
    return None if x is None else x.data_ptr()
