"""The C kernels as built for each instruction set."""

import pytest

from nnunet_ext.ops.native import NativeLibrary, load_native, usable_instruction_sets


def library_for(instructions: str) -> NativeLibrary:
    """The C extension built for an instruction set; skips if the extension or the processor lacks it."""
    if instructions not in usable_instruction_sets():
        pytest.skip(f"this processor has no {instructions}")
    library = load_native(instructions)
    if library is None:
        pytest.skip(f"the C extension was not built for {instructions}")
    return library
