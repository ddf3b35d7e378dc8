"""A ConvLSTM step in the C extension against PyTorch's functions; `test_lstm_sa` tests the networks."""

import pytest
import torch

from nnunet_ext.networks.lstm_sa.conv_lstm import SliceLSTM
from nnunet_ext.ops import lstm_cell, native
from nnunet_ext.ops.native import INSTRUCTION_SETS
from tests.helpers.libraries import library_for


def run(lstm, x, lengths):
    """All states of slices that are read in parts, and the gradients of the input and of every weight."""
    parts, states, memory = x.split(lengths, 1), [], None
    for i, part in enumerate(parts[::-1] if lstm.reverse else parts, start=1):
        out, memory = lstm(part, memory, i == len(parts))
        states.append(out)
    joined = [torch.cat(level, 1) for level in zip(*states, strict=True)]
    loss = sum((k + 1) * (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum() for k, y in enumerate(joined))
    return *joined, *torch.autograd.grad(loss, (x, *lstm.parameters()))


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (2,), (5,), (1, 1, 1), (2, 3), (3, 1, 2)])
@pytest.mark.parametrize("channels", [1, 5, 16, 21])
def test_equals_pytorch_with_every_gradient(instructions, reverse, lengths, channels, monkeypatch, assert_close):
    library = library_for(instructions)
    torch.manual_seed(1)
    lstm = SliceLSTM(channels, kernel_size=3, reverse=reverse)
    x = torch.randn(2, sum(lengths), 4, 3, channels, requires_grad=True)
    found = []
    for chosen in (library, None):
        monkeypatch.setattr(native, "native_library", lambda chosen=chosen: chosen)
        assert lstm_cell.is_native(x) == (chosen is not None)
        found.append(run(lstm, x, lengths))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 2e-6)


def test_saturated_gates(assert_close):
    """Inputs beyond the overflow of exponentials, and 0."""
    library = native.library_for("lstm_cell")
    if library is None:
        pytest.skip("the C extension was not built")
    values = torch.tensor([-1e4, -100, -10, -1, -1e-3, 0, 1e-3, 1, 10, 100, 1e4])
    gates = values.repeat_interleave(4).repeat(1, 1, 4)
    i, f, o, g = (torch.empty(1, 1, 44) for _ in range(4))
    states = {"state_i": i, "state_f": f, "state_o": o, "state_g": g}
    lstm_cell._step(library, "lstm_cell_forward", gates=gates, c=torch.zeros(1, 1, 44), **states)
    for gate in (i, f, o):
        torch.testing.assert_close(gate, torch.sigmoid(gates[..., :44]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(g, torch.tanh(gates[..., :44]), rtol=1e-6, atol=0)


def test_strides_of_channels():
    """With one channel any stride is valid; with several only 1."""
    library = native.library_for("lstm_cell")
    if library is None:
        pytest.skip("the C extension was not built")
    gates, h = torch.randn(2, 3, 4), torch.zeros(2, 1, 3).transpose(1, 2)
    assert h.stride(-1) == 3
    lstm_cell._step(library, "lstm_cell_forward", gates=gates, h=h)
    i, _, o, g = gates.chunk(4, -1)
    torch.testing.assert_close(h, torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g)))
    with pytest.raises(ValueError, match=r"must be adjacent in memory, strides are \(6, 1, 3\)"):
        lstm_cell._step(library, "lstm_cell_forward", gates=gates, h=torch.zeros(2, 2, 3).transpose(1, 2))
