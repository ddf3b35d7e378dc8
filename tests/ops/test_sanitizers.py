"""The C sources under the address and undefined-behaviour sanitizers, at random shapes."""

import os
import shutil
import subprocess
import sys

import pytest

from nnunet_ext.ops import native
from tests.helpers.paths import ROOT

_SCRIPT = """
import ctypes, random, sys
import torch
from nnunet_ext.ops import native, causal_conv1d, selective_scan
from nnunet_ext.ops.axial_attention import mix, mix_backward
from nnunet_ext.ops.instance_norm import instance_norm, instance_norm_
from nnunet_ext.ops import lstm_cell, winograd
from nnunet_ext.supervoxels import supervoxels

library = native.NativeLibrary("baseline", ctypes.CDLL(sys.argv[1]))
native.native_library = lambda: library
random.seed(0)
torch.manual_seed(0)
size = lambda most: random.randint(1, most)

def leaf(*shape):
    return torch.randn(*shape).requires_grad_()

for _ in range(40):
    torch.set_num_threads(size(3))
    b, d, n, l = size(3), size(40), size(20), size(80)
    last = random.random() < 0.5
    sequence = lambda c: leaf(b, l, c).transpose(1, 2) if last else leaf(b, c, l)
    y = selective_scan(sequence(d), sequence(d), -leaf(d, n).abs(), sequence(n), sequence(n), leaf(d), sequence(d),
                       leaf(d), delta_softplus=True, reverse=random.random() < 0.5)
    y.sum().backward()
    x = sequence(d)
    causal_conv1d(x, leaf(d, size(6)), leaf(d), "silu", random.random() < 0.5).sum().backward()
    voxels, channels = size(3000), size(90)
    weight, bias = (leaf(channels), leaf(channels)) if random.random() < 0.5 else (None, None)
    instance_norm(leaf(b, voxels, channels), weight, bias, 1e-5, 0.1)[0].sum().backward()
    with torch.no_grad():
        instance_norm_(torch.randn(b, voxels, channels), weight, bias, 1e-5, 0.1)
    projected = torch.randn(b, size(50), size(3), 3, size(4), size(64))
    mix_backward(projected, torch.randn_like(mix(projected)))
    slices = size(5)
    gates, memory = leaf(b, slices, 3, 2, 4 * channels), leaf(b, 1, 3, 2, channels)
    c, h = lstm_cell.first_step(gates, 0, slices)
    hidden = leaf(b, slices, 3, 2, 4 * channels)
    results = lstm_cell.second_step(gates, memory, leaf(b, 1, 3, 2, 4 * channels), c, hidden, random.random() < 0.5)
    (h.sum() + sum(r.sum() for r in results[:4])).backward()
    maps = leaf(b, size(20), size(20), size(70))
    winograd.convolution(maps, leaf(size(70), maps.shape[-1], 5, 5), None).sum().backward()
    supervoxels(torch.rand(size(6), size(20), size(20)).numpy(), (2, 1, 1), backend="extension")
print("whole")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
@pytest.mark.parametrize(
    ("instructions", "flags"),
    [
        ("baseline", []),
        ("avx2", ["-mavx2", "-mfma"]),
        ("avx512", ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]),
    ],
)
def test_no_read_or_write_beyond_memory_and_nothing_undefined(instructions, flags, tmp_path):
    if instructions not in native.usable_instruction_sets():
        pytest.skip(f"this processor has no {instructions}")
    sources = sorted((ROOT / "nnunet_ext/ops/csrc").glob("*.c"))
    library = tmp_path / "sanitized.so"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = ["gcc", "-std=c11", "-O1", "-g", "-fPIC", "-shared", "-fopenmp", "-w", *sanitizers, *flags]
    command += [f"-DNNUNET_EXT_ABI={native.ABI:#x}", *map(str, sources), "-o", str(library), "-lm"]
    subprocess.run(command, check=True)
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    # The C++ library too: otherwise the sanitizer finds no exceptions to intercept when it starts.
    standard = subprocess.run(["gcc", "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, check=True)
    preloaded = f"{runtime.stdout.strip()} {standard.stdout.strip()}"
    environment = os.environ | {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(library)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("whole\n")
