"""The selective scan: every backend that can run here against the plain reference, with every gradient."""

import ctypes
import subprocess
import sys

import pytest
import torch

from nnunet_ext.ops import cpu_scan, describe_backend, native, selective_scan, selective_scan_reference, triton_support
from nnunet_ext.ops.continued_scan import can_continue, continued_scan
from nnunet_ext.ops.native import INSTRUCTION_SETS, load_native
from tests.helpers.libraries import library_for

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
LENGTHS = [1, 2, 63, 128, 1000, 3000]  # the last is beyond a segment and a GPU's chunk


def scan_inputs(b=2, d=20, length=63, n=16, groups=1, channels_last=False, dtype=torch.float32):
    def sequence(*shape):
        if channels_last:
            return torch.randn(shape[0], shape[-1], *shape[1:-1], dtype=dtype).movedim(1, -1)
        return torch.randn(shape, dtype=dtype)

    states = (b, n, length) if groups == 1 else (b, groups, n, length)
    rates = -torch.arange(1, n + 1, dtype=dtype) * (1 + 0.1 * torch.rand(d, n, dtype=dtype))
    bias = torch.empty(d, dtype=dtype).uniform_(0.001, 0.1).expm1().log()
    return {
        "u": sequence(b, d, length),
        "delta": 0.5 * sequence(b, d, length),
        "A": rates,
        "B": sequence(*states),
        "C": sequence(*states),
        "D": torch.randn(d, dtype=dtype),
        "z": sequence(b, d, length),
        "delta_bias": bias,
    }


def results(scan, inputs, weights=None, **options):
    """y, the last state and every gradient, by name."""
    leaves = {k: v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for k, v in inputs.items()}
    y, state = scan(**leaves, return_last_state=True, **options)
    weights = weights or (torch.linspace(-1, 1, y.numel()).view(y.shape), torch.linspace(1, -1, state.numel()))
    ((y * weights[0].to(y.dtype)).sum() + (state.flatten() * weights[1].to(state.dtype)).sum()).backward()
    return {"y": y.detach(), "state": state.detach()} | {f"grad_{k}": v.grad for k, v in leaves.items()}


@pytest.fixture
def assert_agrees(assert_close):
    def check(inputs, tolerance, **options):
        names = ("delta_softplus", "reverse")
        double = {k: v.double() for k, v in inputs.items()}
        expected = results(selective_scan_reference, double, **{k: options[k] for k in names if k in options})
        actual = results(selective_scan, inputs, **options)
        assert set(actual) == set(expected)
        for key, value in expected.items():
            assert_close(actual[key].double(), value, tolerance)

    return check


@pytest.fixture(params=[*INSTRUCTION_SETS, "segments"])
def cpu_variant(request, monkeypatch):
    """The CPU backend built for one instruction set, or without the C extension."""
    library = None if request.param == "segments" else library_for(request.param)
    monkeypatch.setattr(native, "native_library", lambda: library)
    monkeypatch.setattr(sys.modules["nnunet_ext.ops.selective_scan"], "native_library", lambda: library)
    return request.param


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_cpu_equals_the_reference_at_every_length(cpu_variant, length, reverse, assert_agrees):
    inputs = scan_inputs(d=20 if length < 1000 else 6, length=length, channels_last=length % 2 == 1)
    assert_agrees(inputs, 1e-5, delta_softplus=True, reverse=reverse, backend="cpu")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {"b": 1, "d": 1, "length": 1, "n": 1},
        {"d": 33, "n": 3, "length": 65},
        {"d": 16, "n": 24, "length": 100},
        {"d": 6, "n": 5, "groups": 3, "length": 70},
        {"d": 40, "n": 16, "groups": 2, "length": 33},
        {"b": 3, "d": 64, "n": 17, "length": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_cpu_equals_the_reference_at_any_shape(cpu_variant, shape, reverse, channels_last, assert_agrees):
    inputs = scan_inputs(**shape, channels_last=channels_last)
    assert_agrees(inputs, 1e-5, delta_softplus=True, reverse=reverse, backend="cpu")


@pytest.mark.parametrize("left_out", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_inputs_may_be_left_out(cpu_variant, left_out, assert_agrees):
    inputs = {k: v for k, v in scan_inputs(length=70).items() if k not in left_out}
    assert_agrees(inputs, 1e-5, delta_softplus=True, backend="cpu")


def test_without_softplus(cpu_variant, assert_agrees):
    inputs = scan_inputs(length=70)
    inputs["delta"] = inputs["delta"].abs() * 0.1
    inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.01
    assert_agrees(inputs, 1e-5, reverse=True, backend="cpu")


def test_any_strides_are_read(cpu_variant, assert_close):
    """Slices, as of a projection that gives x and z, and expanded tensors."""
    inputs = scan_inputs(d=20, length=50)
    expected = selective_scan_reference(**inputs, delta_softplus=True)
    wide = torch.randn(2, 50, 3 * 20 + 7)
    strided = dict(inputs)
    for index, name in enumerate(("u", "delta", "z")):
        wide[..., 20 * index : 20 * index + 20] = inputs[name].transpose(1, 2)
        strided[name] = wide[..., 20 * index : 20 * index + 20].transpose(1, 2)
    strided["B"] = torch.stack((inputs["B"], inputs["B"]), -1)[..., 0]
    assert_close(selective_scan(**strided, delta_softplus=True, backend="cpu"), expected, 1e-5)
    constant = inputs | {"u": inputs["u"][:, :1, :1].expand(2, 20, 50)}
    expected = selective_scan_reference(**constant, delta_softplus=True)
    assert_close(selective_scan(**constant, delta_softplus=True, backend="cpu"), expected, 1e-5)


def test_large_steps_and_rates_stay_exact(cpu_variant, assert_agrees):
    """Decays that underflow, softplus in its linear range, gates far from zero."""
    inputs = scan_inputs(length=70)
    for name in ("u", "delta", "z"):
        inputs[name] = 100 * inputs[name]
    assert_agrees(inputs, 1e-5, delta_softplus=True, backend="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_swallowed(cpu_variant, name):
    inputs = scan_inputs(d=4, length=40)
    inputs[name].view(-1)[0] = float("nan")
    assert selective_scan(**inputs, delta_softplus=True, backend="cpu").isnan().any()


@pytest.mark.parametrize("reverse", [False, True])
def test_golden_numbers(golden, reverse, assert_close):
    file = golden("selective_scan")
    order = {k: -1 if k in ("u", "delta", "B", "C", "z") else None for k in NAMES}
    flip = lambda k, v: v.flip(order[k]) if reverse and order[k] else v  # noqa: E731
    inputs = {k: flip(k, file[k]) for k in NAMES}
    for dtype, backend, tolerance in (
        (torch.float64, "torch", 1e-10),
        (torch.float64, None, 1e-10),
        (torch.float32, "torch", 1e-5),
        (torch.float32, "cpu", 1e-5),
    ):
        leaves = {k: v.to(dtype, copy=True).requires_grad_() for k, v in inputs.items()}
        y = selective_scan(**leaves, delta_softplus=True, reverse=reverse, backend=backend)
        assert y.dtype == dtype
        y = y.flip(-1) if reverse else y
        assert_close(y.double(), file["y"], tolerance)
        (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum().backward()
        for name, leaf in leaves.items():
            assert_close(flip(name, leaf.grad).double(), file[f"grad_{name}"], tolerance)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
def test_double_precision_is_computed_in_double(length, reverse, assert_agrees):
    inputs = scan_inputs(d=5, n=3, length=length, dtype=torch.float64)
    assert_agrees(inputs, 1e-10, delta_softplus=True, reverse=reverse)


def test_segments_join(monkeypatch, assert_agrees):
    """More than one segment, the last one short, in both directions."""
    from nnunet_ext.ops import segment_scan

    monkeypatch.setattr(segment_scan, "_SEGMENT_ELEMENTS", 1)
    inputs = scan_inputs(d=6, n=3, groups=2, length=50, dtype=torch.float64)
    for reverse in (False, True):
        assert_agrees(inputs, 1e-10, delta_softplus=True, reverse=reverse, backend="torch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype, assert_close):
    inputs = scan_inputs(length=200)
    half = {k: v.to(dtype) for k, v in inputs.items()}
    y, state = selective_scan(**half, delta_softplus=True, return_last_state=True)
    expected = selective_scan_reference(**{k: v.float() for k, v in half.items()}, delta_softplus=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert_close(y.float(), expected, torch.finfo(dtype).eps)


def test_nothing_is_saved_without_gradients():
    inputs = scan_inputs(length=200)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        selective_scan(**inputs, delta_softplus=True)
        assert kept == []
        inputs["u"].requires_grad_()
        with torch.no_grad():
            selective_scan(**inputs, delta_softplus=True)
        assert kept == []
        selective_scan(**inputs, delta_softplus=True)
    b, d, length = inputs["u"].shape
    states = max(x.numel() for x in kept)
    assert 0 < states <= b * d * length


@pytest.mark.parametrize("segment", [1, 16, 40])
def test_a_scan_is_continued_from_its_state(cpu_variant, segment, assert_close):
    if cpu_variant == "segments":
        assert not can_continue(torch.zeros(1))
        return
    inputs = scan_inputs(length=90, channels_last=True)
    expected, last = selective_scan_reference(**inputs, delta_softplus=True, return_last_state=True)
    parts, state = [], torch.zeros(2, 20, 16)
    with torch.no_grad():
        assert can_continue(inputs["u"])
        for begin in range(0, 90, segment):
            part = {k: v[..., begin : begin + segment] if v.ndim == 3 else v for k, v in inputs.items()}
            parts.append(continued_scan(*part.values(), True, state))
    assert_close(torch.cat(parts, -1), expected, 1e-5)
    assert_close(state, last, 1e-5)


@pytest.mark.skipif(native.native_library() is None, reason="only the C extension continues a scan")
def test_continued_is_a_registered_operator():
    arguments = (*scan_inputs(d=4, length=20).values(), True, torch.zeros(2, 4, 16))
    torch.library.opcheck(torch.ops.nnunet_ext.continued_scan.default, arguments)
    assert not can_continue(arguments[0])  # gradients are asked for


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of opcheck's own copies
def test_is_a_registered_operator():
    inputs = scan_inputs(d=4, length=20)
    arguments = [v.requires_grad_() for v in inputs.values()]
    arguments[3:5] = [x.detach()[:, None].requires_grad_() for x in arguments[3:5]]
    torch.library.opcheck(torch.ops.nnunet_ext.selective_scan.default, (*arguments, True, False, True, "cpu"))


@pytest.mark.parametrize("reverse", [False, True])
def test_compiles_to_one_graph(reverse, assert_close):
    inputs = scan_inputs(length=70, channels_last=True)

    def scan(**arguments):
        return selective_scan(**arguments, delta_softplus=True)

    torch._dynamo.reset()
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    eager, traced = (results(f, inputs, reverse=reverse) for f in (scan, compiled))
    for key, value in eager.items():
        assert_close(traced[key], value, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 3)}, r"`u` must have the shape \(b, d, l\), got \(2, 3\)"),
        ({"A": torch.zeros(3, 2)}, r"`A` must have the shape \(d, n\) with d=4 .*got \(3, 2\)"),
        ({"z": torch.zeros(2, 4, 4)}, r"`z` must have the shape of `u`, \(2, 4, 5\), got \(2, 4, 4\)"),
        ({"D": torch.zeros(3)}, r"`D` must have the shape \(4,\), got \(3,\)"),
        ({"B": torch.zeros(2, 3, 2, 5)}, r"`B` must have .* with g dividing 4, got \(2, 3, 2, 5\)"),
        ({"C": torch.zeros(2, 2, 2, 5)}, r"must have the same number of groups"),
        (
            {"A": torch.zeros(4, 2, dtype=torch.complex64)},
            r"`A` is complex \(torch.complex64\)",
        ),
        ({"u": torch.zeros(2, 4, 0)}, "must not be empty"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = scan_inputs(d=4, length=5, n=2)
    with pytest.raises(ValueError, match=message):
        selective_scan(**(inputs | change))


def test_unusable_backends_say_what_is_missing_and_what_is_there():
    inputs = scan_inputs(d=4, length=5)
    with pytest.raises(RuntimeError, match=r"'mumba' cannot be used here: it is unknown .*available: cpu, torch"):
        selective_scan(**inputs, backend="mumba")
    with pytest.raises(RuntimeError, match=r"'triton' .*needs CUDA tensors, these are on cpu; available: cpu, torch"):
        selective_scan(**inputs, backend="triton")
    with pytest.raises(RuntimeError, match=r"'mamba_ssm' cannot be used here"):
        selective_scan(**inputs, backend="mamba_ssm")


def test_the_backend_is_described(cpu_variant):
    expected = "torch (segments" if cpu_variant == "segments" else f"cpu (C extension, {cpu_variant}, "
    assert describe_backend("cpu").startswith(expected)


def test_threads_do_not_change_the_result(assert_close):
    inputs = scan_inputs(b=1, d=70, length=300)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 5):
            torch.set_num_threads(threads)
            found.append(results(selective_scan, inputs, delta_softplus=True))
    finally:
        torch.set_num_threads(before)
    for key, value in found[0].items():
        assert_close(found[1][key], value, 1e-6)


def test_no_memory_is_an_error(monkeypatch):
    library = native.native_library()
    if library is None:
        pytest.skip("the C extension was not built")

    class Full:
        selective_scan_tile, selective_scan_lanes = (
            library.functions.selective_scan_tile,
            library.functions.selective_scan_lanes,
        )

        @staticmethod
        def selective_scan_forward(_):
            return 1

    inputs = scan_inputs(d=4, length=5)
    tensors = [v[:, None] if k in ("B", "C") else v for k, v in inputs.items()]
    with pytest.raises(MemoryError, match="selective_scan_forward: not enough memory"):
        cpu_scan.forward(native.NativeLibrary("avx2", Full), *tensors, True, False, False)


def test_a_processor_without_vector_units_gets_the_baseline():
    """`ATEN_CPU_CAPABILITY` bounds torch's own kernels; ours follow it."""
    if load_native("baseline") is None:
        pytest.skip("the C extension was not built")
    code = "from nnunet_ext.ops import describe_backend; print(describe_backend('cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"ATEN_CPU_CAPABILITY": "default", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "baseline" in done.stdout


def test_the_extension_needs_no_python_or_torch_library():
    library = native.native_library()
    if library is None:
        pytest.skip("the C extension was not built")
    assert isinstance(library.functions, ctypes.CDLL)
    path = native._FOLDER / f"{library.instruction_set}.so"
    linked = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    assert "libtorch" not in linked
    assert "libpython" not in linked


def test_where_triton_cannot_start_the_scan_goes_on_without(monkeypatch):
    """Triton really cannot start here, because it finds no GPU; elsewhere it may lack a compiler."""
    scan = sys.modules["nnunet_ext.ops.selective_scan"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_support, "MISSING", None)
    triton_support._why_it_fails.cache_clear()
    try:
        with pytest.warns(UserWarning, match="run in plain PyTorch, which is slow. Triton cannot start"):
            assert scan._choose(None, "cuda", torch.float32, compiled=False) == "torch"
        assert scan._choose(None, "cuda", torch.float32, compiled=True) == "triton"
    finally:
        triton_support._why_it_fails.cache_clear()


def test_triton_is_known_by_its_other_names(monkeypatch):
    def version(name):
        if name != "pytorch-triton":
            raise triton_support.metadata.PackageNotFoundError(name)
        return "3.0.0+git"

    monkeypatch.setattr(triton_support.metadata, "version", version)
    monkeypatch.setattr(triton_support.util, "find_spec", lambda name: object())
    assert triton_support._why_missing() == "pytorch-triton 3.0.0+git is too old, 3.3 is needed"


def test_the_state_has_a_gradient_with_mamba_ssm_too(monkeypatch):
    scan = sys.modules["nnunet_ext.ops.selective_scan"]
    monkeypatch.setattr(scan.mamba_ssm_scan, "why_unusable", lambda: None)
    monkeypatch.setattr(triton_support, "MISSING", None)
    assert scan._choose(None, "cuda", torch.float32, compiled=False) == "mamba_ssm"
    assert scan._choose(None, "cuda", torch.float32, compiled=False, state_gradient=True) == "triton"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("constant_B", "constant_C"), [(True, True), (True, False), (False, True)])
def test_coefficients_that_are_constant_in_time(cpu_variant, constant_B, constant_C, reverse, assert_agrees):
    """The cases of mamba's test_mamba_inner_fn: one value per channel and state."""
    inputs = scan_inputs(d=20, length=37, n=5)
    for name, constant in (("B", constant_B), ("C", constant_C)):
        if constant:
            inputs[name] = torch.randn(20, 5)
    assert_agrees(inputs, 1e-5, delta_softplus=True, reverse=reverse, backend="cpu")


def test_an_empty_batch_is_scanned_to_an_empty_result():
    inputs = {k: v[:0] if v.ndim == 3 else v for k, v in scan_inputs(d=4, length=5, n=2).items()}
    y, state = selective_scan(**inputs, return_last_state=True)
    assert (tuple(y.shape), tuple(state.shape)) == ((0, 4, 5), (0, 4, 2))
