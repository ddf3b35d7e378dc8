"""The C extension as a whole: its ABI number, the layout of its structures, its check at first use."""

import ctypes
import shutil
import subprocess
import sys

import pytest
import torch

import nnunet_ext.supervoxels  # noqa: F401 - declares a structure
from nnunet_ext.ops import causal_conv1d, native, self_check
from tests.helpers.paths import ROOT

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def test_the_abi_number_is_that_of_the_structures():
    assert native.layout_number() == native.ABI, f"set ABI in ops/native.py to {native.layout_number():#010x}"


@needs_compiler
@pytest.mark.parametrize("name", sorted(native.STRUCTURES))
def test_pythons_structures_are_laid_out_as_the_c_compilers(name, tmp_path):
    sources = [p for p in sorted((ROOT / "nnunet_ext/ops/csrc").glob("*.[ch]")) if f"}} {name};" in p.read_text()]
    (source,) = sources
    cls = native.STRUCTURES[name]
    fields = [field[0] for field in cls._fields_]
    prints = "".join(f'printf("%zu %zu\\n", offsetof({name}, {f}), sizeof((({name} *)0)->{f}));' for f in fields)
    program = f'#include "{source}"\n#include <stddef.h>\n#include <stdio.h>\n'
    program += f'int main(void) {{ {prints} printf("%zu\\n", sizeof({name})); return 0; }}\n'
    (tmp_path / "layout.c").write_text(program)
    done = subprocess.run(
        ["cc", "-w", "layout.c", "-o", "layout", "-lm"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout.splitlines()
    places = [getattr(cls, f) for f in fields]
    assert lines == [*(f"{p.offset} {p.size}" for p in places), str(ctypes.sizeof(cls))]


@needs_compiler
@pytest.mark.parametrize(("number", "built"), [("0x123", "with the ABI number 0x00000123"), (None, "before it had")])
def test_a_library_of_another_build_is_refused_and_pytorch_does_its_work(number, built, tmp_path):
    """As after `git pull` with an editable install, where the old library remains."""
    code = "int selective_scan_openmp(void) { return 0; }"
    if number is not None:
        code += f" unsigned nnunet_ext_abi(void) {{ return {number}; }}"
    (tmp_path / "old.c").write_text(code)
    for name in native.INSTRUCTION_SETS:
        subprocess.run(["cc", "-shared", "-fPIC", "old.c", "-o", f"{name}.so"], cwd=tmp_path, check=True)
    script = f"""
import pathlib, warnings
from nnunet_ext.ops import native
native._FOLDER = pathlib.Path({str(tmp_path)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from nnunet_ext.ops import causal_conv1d, causal_conv1d_reference, describe_backend
    x, weight = torch.randn(2, 9, 8).transpose(1, 2), torch.randn(8, 4)
    torch.testing.assert_close(causal_conv1d(x, weight), causal_conv1d_reference(x, weight))
    assert native.native_library() is None
print(caught[0].message)
print(describe_backend("cpu"))
from nnunet_ext.doctor import diagnose
print([c for c in diagnose() if c.name == "C extension"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    warning, backend, doctor = done.stdout.splitlines()
    assert warning.startswith("the C extension is not used, plain PyTorch does its work, more slowly: ")
    assert built in warning
    assert "Install nnunet_ext again" in warning
    assert built in backend
    assert "state='missing'" in doctor
    assert built in doctor


@pytest.fixture
def unchecked(monkeypatch):
    """As in a new process, where no kernel was used yet."""
    if native.native_library() is None:
        pytest.skip("the C extension was not built")
    monkeypatch.setattr(self_check, "_verdicts", {})
    return monkeypatch


@pytest.mark.parametrize("kernel", sorted(native.checks()))
def test_every_kernel_agrees_with_its_reference_at_first_use(unchecked, kernel):
    assert native.library_for(kernel) is native.native_library()
    (verdict,) = self_check._verdicts.values()
    assert 0 <= verdict.error <= 1e-5


@pytest.mark.parametrize("kernel", sorted(native.checks()))
@pytest.mark.parametrize(
    ("compare", "reason"),
    [
        (lambda library: [(torch.ones(2), torch.tensor([1.0, 1.1]))], "differs from the reference by 9.1e-02"),
        (lambda library: [(torch.full((2,), torch.nan), torch.ones(2))], "differs from the reference by nan"),
        (lambda library: 1 / 0, "failed with ZeroDivisionError"),
    ],
)
def test_a_kernel_that_is_wrong_is_reported_once_and_left_out(unchecked, kernel, compare, reason):
    unchecked.setitem(native._CHECKS, kernel, compare)
    with pytest.warns(UserWarning, match=rf"the C kernel {kernel} is not used.*{reason}"):
        assert native.library_for(kernel) is None
    assert native.library_for(kernel) is None  # without a warning, which would be an error


def test_operators_fall_back_when_their_kernel_is_wrong(unchecked, assert_close):
    unchecked.setitem(native._CHECKS, "causal_conv1d", lambda library: [(torch.zeros(1), torch.ones(1))])
    x, weight = torch.randn(2, 9, 8).transpose(1, 2), torch.randn(8, 4)
    with pytest.warns(UserWarning, match="the C kernel causal_conv1d is not used"):
        y = causal_conv1d(x, weight)
    assert_close(y, torch.nn.functional.conv1d(torch.nn.functional.pad(x, (3, 0)), weight[:, None], groups=8), 1e-5)


def test_the_first_use_may_be_under_a_trace_a_mode_or_a_transform(unchecked):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert native.library_for("instance_norm") is not None
    # Transforms of torch.func have no memory to read: PyTorch computes there, and the kernel is still used afterwards.
    assert torch.func.grad(lambda x: x * (native.library_for("axial_attention") is None))(torch.ones(())) == 1
    assert native.library_for("axial_attention") is not None
    x = torch.ones(1)
    traced = torch.jit.trace(lambda x: x * int(native.library_for("lstm_cell") is not None), x, check_trace=False)
    assert traced(x) == 1
