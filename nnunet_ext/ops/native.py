"""The optional C extension: found, chosen for the processor, and called through ctypes.

`setup.py` compiles `csrc/*.c` once for each instruction set that the compiler knows, without any link to Python
or torch, so that one build serves every version of both. Without a compiler there is no library, and the operators use
PyTorch.

How to add a C kernel: its module in `ops` has a `Structure` like the kernel's (declared in `STRUCTURES`), a pair of
functions that compute with the library and with plain PyTorch, a comparison of the two (`checked`), and operators of
`torch.library` that choose between them by `library_for`. Only these operators call the library, so that traces, hooks,
fake tensors and autograd see everything it writes.
"""

import ctypes
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nnunet_ext.ops.self_check import Pairs, is_right
from nnunet_ext.utils.torch_private import in_function_transform

ABI = 0x91871EA2
"""Number of the layout of all structures that are passed to the C code (`layout_number`).

`setup.py` builds it into every library. A test compares it with the structures; change it with them.
"""

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""From the fastest to the most general; a processor that runs one also runs those after it."""

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

    def call(self, name: str, argument: ctypes.Structure) -> None:
        """Calls a function of the library.

        Raises:
            MemoryError: if there is not enough memory for its work space.
        """
        if getattr(self.functions, name)(ctypes.byref(argument)):
            raise MemoryError(f"{name}: not enough memory for its work space")


_refusals: dict[str, str] = {}


@cache
def load_native(instruction_set: str) -> NativeLibrary | None:
    """The library compiled for an instruction set; None if it was not built, cannot be loaded here, or is refused.

    A library that was built from other sources than the Python code expects would read its arguments wrongly. It is
    refused with a warning, and plain PyTorch does the work.
    """
    path = _FOLDER / f"{instruction_set}.so"
    if not path.is_file():
        return None
    try:
        # torch, imported above, has loaded its OpenMP runtime, which the library then shares.
        functions = ctypes.CDLL(str(path))
    except OSError:
        return None
    found = abi_of(functions)
    if found != ABI:
        built = "before it had an ABI number" if found is None else f"with the ABI number {found:#010x}"
        reason = f"{path.name} was built {built}, the Python code needs {ABI:#010x}"
        _refusals[instruction_set] = reason
        warnings.warn(
            f"the C extension is not used, plain PyTorch does its work, more slowly: {reason}. {REBUILD}", stacklevel=2
        )
        return None
    return NativeLibrary(instruction_set, functions)


REBUILD = "Install nnunet_ext again (pip install -e . in a checkout) to rebuild it"


def abi_of(functions: ctypes.CDLL) -> int | None:
    """The ABI number of a library; None for one that was built before there were such numbers."""
    try:
        function = functions.nnunet_ext_abi
    except AttributeError:
        return None
    function.restype = ctypes.c_uint32
    return function()


def refusal() -> str | None:
    """Reason why a library that was built for this processor is not used, or None."""
    native_library()
    return next((_refusals[name] for name in usable_instruction_sets() if name in _refusals), None)


def usable_instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor, the fastest first; `ATEN_CPU_CAPABILITY` bounds them, as it bounds torch."""
    capability = torch.backends.cpu.get_cpu_capability()
    first = {"AVX512": 0, "AVX2": 1}.get(capability, 2)
    return INSTRUCTION_SETS[first:]


@cache
def native_library() -> NativeLibrary | None:
    """The fastest library that was built and that this processor can run; None if there is none."""
    return next(filter(None, map(load_native, usable_instruction_sets())), None)


STRUCTURES: dict[str, type[ctypes.Structure]] = {}
"""Python's form of the C structures, by their names in the C sources."""
_CHECKS: dict[str, Callable[[NativeLibrary], Pairs]] = {}


def structure(name: str) -> Callable[[type[ctypes.Structure]], type[ctypes.Structure]]:
    """Declares a class as Python's form of the C structure with that name."""

    def declare(cls: type[ctypes.Structure]) -> type[ctypes.Structure]:
        STRUCTURES[name] = cls
        return cls

    return declare


def checked(kernel: str) -> Callable[[Callable[[NativeLibrary], Pairs]], Callable[[NativeLibrary], Pairs]]:
    """Declares a function as the comparison of a kernel with plain PyTorch, to be run at the kernel's first use."""

    def declare(compare: Callable[[NativeLibrary], Pairs]) -> Callable[[NativeLibrary], Pairs]:
        _CHECKS[kernel] = compare
        return compare

    return declare


def checks() -> dict[str, Callable[[NativeLibrary], Pairs]]:
    """Comparisons of all C kernels whose modules were imported."""
    return dict(_CHECKS)


def library_for(kernel: str, *tensors: Tensor | None) -> NativeLibrary | None:
    """The library if it computes with these tensors: in single precision and on the CPU; None: PyTorch does.

    Args:
        kernel: As it was declared by `checked`; at its first use it is compared with plain PyTorch.
        tensors: Arguments of the operator.
    """
    if any(x is not None and (x.dtype != torch.float32 or x.device.type != "cpu") for x in tensors):
        return None
    library = native_library()
    if library is None or in_function_transform():  # its tensors have no memory that C code could read
        return None
    key = (kernel, library)
    return library if is_right(key, f"the C kernel {kernel}", lambda: _CHECKS[kernel](library)) else None


def layout_number() -> int:
    """Checksum of the names, offsets and sizes of all fields of `STRUCTURES`."""
    layout = []
    for name, cls in sorted(STRUCTURES.items()):
        fields = [(field[0], getattr(cls, field[0])) for field in cls._fields_]
        layout.append((name, ctypes.sizeof(cls), [(field, place.offset, place.size) for field, place in fields]))
    return zlib.crc32(repr(layout).encode())


@structure("tensor")
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
        """Describes a (batch, row, time) or (batch, group, row, time) tensor that `readable` returned."""
        batch, group, row, time = x.stride() if x.ndim == 4 else (x.stride(0), 0, *x.stride()[1:])
        # A row of length 1 may carry any stride.
        return cls(x.data_ptr(), batch, group, 1 if x.shape[-2] == 1 and time != 1 else row, time)


def readable(x: Tensor) -> Tensor:
    """`x` itself if its rows are adjacent in memory or contiguous in time, as the C code needs, else a copy."""
    return x if 1 in x.stride()[-2:] else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    """The address of a contiguous tensor's first value; None for None."""
    return None if x is None else x.data_ptr()
