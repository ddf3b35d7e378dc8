"""AFF (adaptive frequency filter) of FAF-Net: filters an attention map's spectrum, depending on the image's features.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.blocks.real_inverse import real_inverse
from nnunet_ext.ops import real_dft
from nnunet_ext.ops.portable import is_portable


class AFF(nn.Module):
    """Filters amplitude and phase of (h, w) maps with one pair of filters per head, computed from a feature map.

        r1 = conv1x1(F);  r2 = conv3x3(ReLU(r1)) + r1;  r3 = ReLU(conv1x1(ReLU(r2)));  f = W r3 + b
        Z = rfft2(A);  A' = irfft(ifft(|Z| f_amplitude exp(i arg(Z) f_phase)))

    W ties the filters to a grid. For features of another size, r3 is resized to the grid and the filters are resized
    back, with aligned corners, because otherwise the zero frequency would move.

    Args:
        channels: C, channels of the features.
        heads: m, number of filters of each kind.
        grid: (h, w) of the features for which the filters are made.

    Shape:
        `filters`: (B, C, h', w') -> two of (B, m, h', w' // 2 + 1); `forward`: (..., h', w') and filters that broadcast
        with its spectrum -> (..., h', w')
    """

    def __init__(self, channels: int, heads: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.amplitude, self.phase = (FilterBranch(channels, heads, grid) for _ in range(2))

    def filters(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Filters of amplitude and phase for these features, in at least float32."""
        return self.amplitude(features), self.phase(features)

    def forward(self, maps: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
        # In half precision cuFFT supports powers of two only.
        with torch.autocast(maps.device.type, enabled=False):
            if is_portable():
                return self._portable(at_least_float32(maps), amplitude, phase)
            spectrum = torch.fft.rfftn(at_least_float32(maps), dim=(-2, -1))  # torch.export of 2.5 fails with rfft2
            modulus, angle = spectrum.abs() * amplitude, spectrum.angle() * phase
            # Not torch.polar: its gradient is wrong for a negative modulus, which the filters may produce.
            filtered = torch.complex(modulus * angle.cos(), modulus * angle.sin())
            return real_inverse(filtered, (-2, -1), maps.shape[-1])

    @staticmethod
    def _portable(maps: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
        axes = (maps.ndim - 2, maps.ndim - 1)
        real, imaginary = real_dft.rfftn(maps, axes).unbind(-1)
        modulus = (real.square() + imaginary.square()).sqrt() * amplitude
        angle = torch.atan2(imaginary, real) * phase
        filtered = torch.stack((modulus * angle.cos(), modulus * angle.sin()), -1)
        return real_dft.irfftn(filtered, axes, int(maps.shape[-1]))  # a tensor under torch.jit.trace


class FilterBranch(nn.Module):
    """Computes one kind of filter (amplitude or phase) from features; arguments as for `AFF`.

    Shape:
        (B, C, h', w') -> (B, m, h', w' // 2 + 1)
    """

    def __init__(self, channels: int, heads: int, grid: Sequence[int]) -> None:
        super().__init__()
        height, width = grid
        self.grid = (height, width)
        self.res1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.res2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.res3 = nn.Conv2d(channels, heads, 1, bias=False)
        self.down = nn.Linear(height * width, height * (width // 2 + 1))

    def forward(self, features: Tensor) -> Tensor:
        r1 = self.res1(features)
        r2 = self.res2(F.relu(r1)) + r1
        r3 = F.relu(self.res3(F.relu(r2)))
        with torch.autocast(features.device.type, enabled=False):
            height, width = features.shape[-2:]
            responses = resize(at_least_float32(r3), self.grid)
            filters = self.down(responses.flatten(2)).unflatten(-1, (self.grid[0], self.grid[1] // 2 + 1))
            return resize(filters, (height, width // 2 + 1))

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear with aligned corners; returns the map itself if it has that size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)
