"""Mamba: a selective state space model that reads a sequence forwards, or forwards and backwards.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), as U-Mamba
uses it; the bidirectional form: Zhu et al., "Vision Mamba" (arXiv 2401.09417), as EM-Net uses it ("v2").
"""

from math import ceil, log
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.ops import causal_conv1d, selective_scan
from nnunet_ext.ops.continued_scan import can_continue, continued_scan
from nnunet_ext.ops.portable import without_autocast
from nnunet_ext.utils.torch_private import has_hooks

_TIME_STEPS = (0.001, 0.1)
"""Range of the initial time steps delta."""
_SEGMENT = 4096
"""Tokens read at once without gradients: few enough for the cache, and many enough that calls cost little."""

_ScanInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Mamba(nn.Module):
    """Mamba with one input projection, one output projection, and one selective scan per direction.

    x, z = in_proj(t); y = scan(x, z), in both directions scan_forward(x, z) + scan_backward(x, z);
    result = out_proj(y)

    Computed in at least float32 even under autocast, because the exponentials of a float16 scan give NaN. On the CPU,
    with the C extension and without gradients, Mamba with one direction reads long sequences segment by segment: the
    same result in less memory.

    Args:
        channels: C.
        state: N, the states per inner channel.
        kernel: Width of the causal convolution, in tokens.
        expand: Inner channels D = expand * C.
        bidirectional: Whether to read backwards too.

    Shape:
        (B, L, C) -> (B, L, C)
    """

    def __init__(
        self, channels: int, state: int = 16, kernel: int = 4, expand: int = 2, bidirectional: bool = False
    ) -> None:
        super().__init__()
        inner, rank = expand * channels, ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        orders = (False, True) if bidirectional else (False,)
        self.directions = nn.ModuleList(Direction(inner, rank, state, kernel, reverse) for reverse in orders)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        with without_autocast(tokens.device.type):
            if self._can_read_in_segments(tokens):
                return self._in_segments(tokens)
            x, z = self._projected(at_least_float32(tokens))
            first, *others = (direction(x, z) for direction in self.directions)
            return self.out_proj(sum(others, first).transpose(1, 2))

    def _projected(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, 1)  # views (B, D, L)
        return x, z

    def _can_read_in_segments(self, tokens: Tensor) -> bool:
        """Whether segments save time here; with two directions, every segment would be projected twice."""
        # The length comes last: asking for it would fix it in an exported graph.
        if len(self.directions) > 1 or not can_continue(tokens) or tokens.shape[1] <= 2 * _SEGMENT:
            return False
        return all(p.dtype == tokens.dtype for p in self.parameters()) and not any(map(has_hooks, self.modules()))

    def _in_segments(self, tokens: Tensor) -> Tensor:
        direction = cast(Direction, self.directions[0])
        result, state = torch.empty_like(tokens), direction.first_state(tokens.shape[0])
        for begin in range(0, tokens.shape[1], _SEGMENT):
            end, seen = begin + _SEGMENT, min(begin, direction.reach)
            x, z = self._projected(tokens[:, begin - seen : end])
            y = direction.continued(x, z[..., seen:], state)
            result[:, begin:end] = self.out_proj(y.transpose(1, 2))
        return result


class Direction(nn.Module):
    """One direction: a short convolution, and a selective scan whose delta, B and C are computed from its result.

        u = SiLU(conv1d(x));  dt, B, C = x_proj(u);  delta = softplus(dt_proj(dt))
        h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t;  y_t = (C_t . h_t + D u_t) SiLU(z_t);  A = -exp(A_log)

    In the backward direction, t - 1 reads t + 1 and the convolution looks ahead instead of back. This is equivalent to
    reversing x and z and then the result, without the copies. The convolution's weights are in causal order in both
    directions.

    Args:
        channels: D, the inner channels.
        rank: Width of dt.
        state: N, the states per channel.
        kernel: Width of the convolution, in tokens.
        reverse: Whether to read backwards.

    Shape:
        x and z (B, D, L) -> (B, D, L)
    """

    def __init__(self, channels: int, rank: int, state: int, kernel: int, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        self.split = [rank, state, state]
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            low, high = _TIME_STEPS
            delta = torch.empty(channels).uniform_(log(low), log(high)).exp()
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus(bias) = delta

    @property
    def reach(self) -> int:
        """How many earlier tokens the convolution sees."""
        return int(self.conv1d.kernel_size[0]) - 1

    def first_state(self, batch: int) -> Tensor:
        """The state before the first token, (batch, D, N)."""
        return self.A_log.new_zeros(batch, *self.A_log.shape)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        arguments = self._scan_inputs(x, z)
        y = selective_scan(*arguments, delta_bias=self.dt_proj.bias, delta_softplus=True, reverse=self.reverse)
        return cast(Tensor, y)  # never the pair with the last state

    def continued(self, x: Tensor, z: Tensor, state: Tensor) -> Tensor:
        """The result for the next tokens; without gradients, forwards, where `can_continue`.

        Args:
            x: These tokens, preceded by up to `reach` earlier ones.
            z: These tokens.
            state: State before these tokens; overwritten with the state after them.
        """
        return continued_scan(*self._scan_inputs(x, z), self.dt_proj.bias, True, state)

    def _scan_inputs(self, x: Tensor, z: Tensor) -> _ScanInputs:
        """u, delta without its bias, A, B, C, D and z, for the last tokens of x, as many as z has."""
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        u = causal_conv1d(x, weight, bias, activation="silu", reverse=self.reverse)
        if u.shape[2] != z.shape[2]:
            u = u[..., -z.shape[2] :]
        dt, b, c = self.x_proj(u.transpose(1, 2)).split(self.split, -1)
        delta = F.linear(dt, self.dt_proj.weight).transpose(1, 2)
        return u, delta, -torch.exp(self.A_log), b.transpose(1, 2), c.transpose(1, 2), self.D, z
