import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.blocks import mamba as blocks_mamba
from nnunet_ext.blocks.mamba import Direction, Mamba
from nnunet_ext.ops.native import native_library


def randomise(module):
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


def test_reading_backwards_is_reading_the_reversed_sequence(assert_close):
    forwards = randomise(Direction(6, 2, 4, 4, reverse=False))
    backwards = Direction(6, 2, 4, 4, reverse=True).double()
    backwards.load_state_dict(forwards.state_dict())
    x, z = torch.randn(2, 3, 6, 21, dtype=torch.float64)
    assert_close(backwards(x, z), forwards(x.flip(-1), z.flip(-1)).flip(-1), 1e-12)
    assert_close(forwards(x, z)[..., :9], forwards(x[..., :9], z[..., :9]), 1e-12)


def test_mamba_sees_both_sides_and_no_other_sample():
    mamba = randomise(Mamba(4, bidirectional=True))
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    mamba(x)[1, 4].sum().backward()
    assert (x.grad[0] == 0).all()
    assert (x.grad[1].abs().sum(-1) > 0).all()


def test_mamba_of_one_direction_reads_forwards(assert_close):
    mamba, both = Mamba(4).double(), Mamba(4, bidirectional=True).double()
    weights = mamba.state_dict()
    assert not [name for name in weights if name.startswith("directions.1.")]
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    assert_close(mamba(x)[:, :5], mamba(x[:, :5]), 1e-12)
    both.load_state_dict(both.state_dict() | weights)
    _, last = both.directions
    nn.init.zeros_(last.D)
    nn.init.zeros_(last.x_proj.weight)
    assert_close(both(x), mamba(x), 1e-12)


def test_mamba_starts_as_published():
    mamba = Mamba(40, bidirectional=True)
    for direction in mamba.directions:
        assert direction.dt_proj.weight.shape == (80, 3)
        assert direction.dt_proj.weight.abs().max() <= 3**-0.5
        delta = F.softplus(direction.dt_proj.bias)
        assert 0.00099 < delta.min() < 0.01 < delta.max() < 0.1001
        assert torch.equal(direction.A_log[7], torch.arange(1.0, 17).log())
        assert (direction.D == 1).all()
    biases = {name for name, _ in mamba.named_parameters() if name.endswith("bias")}
    assert biases == {f"directions.{i}.{kind}.bias" for i in (0, 1) for kind in ("conv1d", "dt_proj")}


@pytest.mark.skipif(native_library() is None, reason="only the C extension continues a scan")
@pytest.mark.parametrize("length", [65, 96, 200])
def test_long_sequences_are_read_in_segments_without_gradients(length, monkeypatch, assert_close):
    monkeypatch.setattr(blocks_mamba, "_SEGMENT", 32)
    mamba, x, segments = Mamba(6), torch.randn(2, length, 6), []
    continued = Direction.continued

    def noted(direction, x, z, state):
        segments.append(z.shape[2])
        return continued(direction, x, z, state)

    monkeypatch.setattr(Direction, "continued", noted)
    whole = mamba(x)
    assert segments == []
    with torch.no_grad():
        assert_close(mamba(x), whole, 1e-6)
    assert max(segments) == 32
    assert sum(segments) == length


def test_hooks_see_the_whole_sequence(monkeypatch):
    monkeypatch.setattr(blocks_mamba, "_SEGMENT", 32)
    mamba, seen = Mamba(6), []
    mamba.in_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        mamba(torch.randn(1, 100, 6))
    assert seen == [100]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_serves_longer_sequences(monkeypatch, assert_close):
    monkeypatch.setattr(blocks_mamba, "_SEGMENT", 32)
    mamba = Mamba(6).eval()
    with torch.no_grad():
        traced = torch.jit.trace(mamba, torch.randn(1, 100, 6))
        x = torch.randn(1, 300, 6)
        assert_close(traced(x), mamba(x), 1e-6)
