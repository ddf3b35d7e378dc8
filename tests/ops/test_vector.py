"""The exponential of the C extension against double precision, for every instruction set."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from nnunet_ext.ops import native
from tests.helpers.paths import ROOT

FLAGS = {"avx512": ["-mavx512f", "-mavx512dq", "-mavx2", "-mfma"], "avx2": ["-mavx2", "-mfma"], "baseline": []}
PROGRAM = """
#include "vector.h"
void compute(const float *x, float *y, long n, int natural) {
    for (long i = 0; i < n; i += LANES) {
        vf v = load(x + i);
        store(y + i, natural ? exp_vector(v) : exp2_vector(v));
    }
}
"""
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")


@pytest.fixture(params=native.INSTRUCTION_SETS)
def exponential(request, tmp_path):
    """A function of an array and of whether the base is e."""
    if request.param not in native.usable_instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    (tmp_path / "vector.c").write_text(PROGRAM)
    command = ["gcc", "-std=c11", "-O3", "-shared", "-fPIC", "-ffp-contract=fast", *FLAGS[request.param]]
    command += ["-I", str(ROOT / "nnunet_ext/ops/csrc"), "vector.c", "-o", "vector.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "vector.so"))

    def compute(x, natural):
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        pointers = (v.ctypes.data_as(ctypes.c_void_p) for v in (x, y))
        library.compute(*pointers, ctypes.c_long(x.size), ctypes.c_int(natural))
        return y

    compute.instructions = request.param
    return compute


@needs_gcc
def test_powers_of_two_are_right_to_two_units_in_the_last_place(exponential):
    x = np.linspace(-125.5, 126, 1 << 18).astype(np.float32)
    y, expected = exponential(x, natural=False), np.exp2(x.astype(np.float64))
    # 2^x is not a float, but the unit is that of the floats around it.
    unit = np.spacing(expected.astype(np.float32)).astype(np.float64)
    bound = 2.1 if exponential.instructions == "baseline" else 2  # without fused multiplications
    assert (np.abs(y - expected) / unit).max() <= bound
    assert np.abs(y / expected - 1).max() <= 2e-7


@needs_gcc
def test_slow_decays_keep_their_rate(exponential):
    """1 - exp(-x) for small x decides how long a state lasts; exp(0) is 1 without an error."""
    assert (exponential(np.zeros(16), natural=False) == 1).all()
    x = -np.logspace(-4, -2, 1 << 12)
    error = np.abs(exponential(x, natural=False) - np.exp2(x.astype(np.float32).astype(np.float64)))
    assert error.max() <= 0.6 * 2.0**-24  # half a unit of floats below 1 and little else


@needs_gcc
@pytest.mark.parametrize("natural", [False, True])
def test_extremes_do_not_wrap_around(exponential, natural):
    low, high = exponential(np.full(16, -1e30), natural), exponential(np.full(16, 1e30), natural)
    assert ((low >= 0) & (low <= 2.0**-125)).all()
    assert (high >= 2.0**125).all()
    assert np.isnan(exponential(np.full(16, np.nan), natural)).all()
    if natural:  # of sigmoid and softplus, whose arguments may be infinite
        assert exponential(np.full(16, -np.inf), natural).max() <= 2.0**-125
        assert exponential(np.full(16, np.inf), natural).min() >= 2.0**125
