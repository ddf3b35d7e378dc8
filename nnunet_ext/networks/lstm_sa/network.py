"""SALSTM and LSTMSA: LSTM and self-attention over neighbouring slices, in 2D and 3D.

Source: Ji, Ye, Ma, "Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE
TIP 2024.

Every slice is segmented from its own features and those of its two neighbours: one ConvLSTM reads the previous and the
current slice, another reads the next and the current slice, the states of each go through a channel attention, and a
1x1 convolution gives the logits. The authors' code segments one slice at a time and runs its 2D network three times for
it. This implementation processes whole volumes, computing each slice's features once and half of the recurrent
convolutions, with the same values and gradients. It supports any plan, deep supervision, and activation checkpointing
by chunks of slices.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.dimension import spatial_dims
from nnunet_ext.networks.checks import check_input, check_widths
from nnunet_ext.networks.chunks import checkpointed
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.heads import check_heads, drop_unused_heads
from nnunet_ext.networks.lstm_sa.adapting import SCORES
from nnunet_ext.networks.lstm_sa.backbones import build_backbone
from nnunet_ext.networks.lstm_sa.conv_lstm import Memory, SliceLSTM
from nnunet_ext.networks.lstm_sa.state_attention import StateAttention, project
from nnunet_ext.networks.topology import PerStage, Topology
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.utils.torch_private import BatchNorm

_KEPT_VALUES = 40
"""Values that a voxel of the head keeps for its gradient, in units of C: gates and states of both directions."""
_MAX_BYTES, _CHUNK_BYTES = 4 << 30, 1 << 29
"""If a batch of two in float32 needs more than the first, slices are checkpointed in chunks of about the second."""
_CPU_GATE_BYTES = 16 << 20
_HEAD_STD = 2.0
"""Standard deviation of the head's initial weights. The head's input is small: the states h = o tanh(c) of an LSTM with
default weights are a few tenths, and the attention starts as their mean over channels. With a convolution's default
weights of 0.07, the logits vary by 0.01 over an image (LSTMSA: 0.001), and Adam, which moves a weight by at most its
learning rate per step, needs epochs before the network starts to learn.
"""


class _SliceNetwork(nn.Module):
    """Base class of SALSTM and LSTMSA, which differ only in their attention."""

    tied_to_patch = SCORES
    gated: bool

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: int | Sequence[int] | None,
        n_stages: int = 2,
        features_per_stage: int | Sequence[int] = 64,
        conv_op: type[nn.Module] = nn.Conv2d,
        kernel_sizes: PerStage = 3,
        strides: PerStage = 2,
        backbone: nn.Module | str | None = None,
        attention_size: int | None = None,
        checkpoint_slices: int | None = None,
        deep_supervision: bool = False,
        *,
        backbone_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        self.input_channels = input_channels
        self.slices = spatial_dims(conv_op) == 3
        topology = None
        if patch_size is not None:
            topology = _in_plane(
                conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
            )
        self.patch_size = None if topology is None else topology.patch_size
        self.backbone, widths = build_backbone(
            backbone,
            backbone_arguments,
            input_channels=input_channels,
            widths=features_per_stage,
            topology=topology,
        )
        if attention_size is None and self.patch_size is not None:
            attention_size = prod(self.patch_size[-2:])
        if attention_size is None or attention_size < 1:
            raise ValueError(
                f"`attention_size`={attention_size} must be a positive number, the voxels of a slice; it can be left "
                "out where `patch_size` is given"
            )
        if checkpoint_slices is None:
            checkpoint_slices = _needed_chunk(widths[0], self.patch_size) if self.slices and self.patch_size else 0
        if checkpoint_slices < 0:
            raise ValueError(f"`checkpoint_slices`={checkpoint_slices} must be positive, or 0 for no checkpointing")
        self.checkpoint_slices, self.attention_size = checkpoint_slices, attention_size
        self.decoder = _Decoder(widths, num_classes, attention_size, self.gated, deep_supervision)

    @with_empty_batches
    @at_any_precision
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.patch_size is not None:
            check_input(x, self.input_channels, self.patch_size)
        stack = x.movedim(2, 1) if self.slices else x[:, None]  # (B, D, M, H, W)
        outputs = [y.movedim(1, 2) if self.slices else y[:, 0] for y in self._segment(stack)]
        return outputs if self.decoder.deep_supervision else outputs[0]

    @with_empty_batches
    @at_any_precision
    def forward_slices(self, previous: Tensor, current: Tensor, following: Tensor) -> Tensor:
        """Logits of slices from themselves and their neighbours, with the interface of the authors' code.

        Shape:
            (B, M, H, W) each -> (B, K, H, W)
        """
        finest, *_ = self._features(torch.stack((previous, current, following), 1))
        before, own, after = finest.split(1, 1)
        return self.decoder.head_of_slice(own, (before, after)).movedim(-1, 2)[:, 0]

    @classmethod
    def adapt_topology(
        cls,
        *,
        patch_size: int | Sequence[int],
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: PerStage,
        strides: PerStage,
    ) -> dict[str, Any]:
        """The in-plane part of a plan: kernels and strides are 1 along the axis of the slices."""
        topology = _in_plane(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        return {
            "patch_size": topology.patch_size,
            "n_stages": n_stages,
            "features_per_stage": topology.features,
            "conv_op": conv_op,
            "kernel_sizes": topology.kernel_sizes,
            "strides": topology.strides,
        }

    def _segment(self, stack: Tensor) -> list[Tensor]:
        """(B, D, M, H, W) -> outputs (B, D, K, H_l, W_l)."""
        if is_portable():
            step, run = stack.shape[1], _directly
        elif torch.is_grad_enabled():
            step = self.checkpoint_slices or stack.shape[1]
            run = partial(checkpointed, self) if self.checkpoint_slices else _directly
        else:
            step, run = _chunk(stack, self.decoder.channels), _directly
        # Only if the backbone does not take statistics over all slices.
        split = not any(isinstance(m, BatchNorm) and m.training for m in self.backbone.modules())
        parts = [run(self._features, part) for part in stack.split(step, 1)] if split else [self._features(stack)]
        maps = [torch.cat(level, 1) if len(level) > 1 else level[0] for level in zip(*parts, strict=True)]
        return self.decoder(maps, step, run)

    def _features(self, stack: Tensor) -> list[Tensor]:
        """(B, n, M, H, W) -> the backbone's maps (B, n, H_l, W_l, C_l), full resolution first."""
        maps = self.backbone(stack.flatten(0, 1))
        maps = list(maps) if isinstance(maps, (list, tuple)) else [maps]
        needed = maps if self.decoder.deep_supervision else maps[:1]
        return [m.movedim(1, -1).unflatten(0, stack.shape[:2]) for m in needed]


class SALSTM(_SliceNetwork):
    """SALSTM: attention whose query, key and value are the states of ConvLSTMs over neighbouring slices.

    For the features f of a slice, the states of LSTM(f_prev, f) and LSTM'(f_next, f) each go through
    softmax((c + f)/2 ((g + h)/2)^T / sqrt(s)) h; the results are concatenated and a 1x1 convolution gives the logits.
    Beyond the patch, the border slice is repeated; in 2D a slice is its own neighbour.

    The constructor has nnU-Net's vocabulary. Slices run along the first axis of a 3D patch; kernels and strides along
    it are not used.

    Args:
        input_channels: M, the number of modalities.
        num_classes: K, the number of logits.
        patch_size: P in voxels, divisible in-plane by the product of the strides; None: any size, if `backbone` is a
            module.
        n_stages: Levels of the plan's U-Net, at least 2.
        features_per_stage: Channels per level; the first is C, the width of the LSTMs.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel sizes, per level and axis.
        strides: Strides into each level, per level and axis; all 1 for the first.
        backbone: Network that computes the features of slices (N, M, H, W). None: the plan's U-Net; ``"mt_unet"``:
            MT-UNet with 64 channels; the dotted name of a class, ``"monai.networks.nets.UNet"`` for instance, which
            gets C as its number of classes; or a module that returns (N, C, H, W), or a list of such maps, full
            resolution first, whose channels are then `features_per_stage`.
        backbone_arguments: Further arguments of the class that `backbone` names. In 2D, it gets the channels, the size
            of a slice and the topology by itself, as far as it takes them in nnU-Net's vocabulary, or in MONAI's
            (`spatial_dims`, `in_channels`, `out_channels`, `img_size`).
        attention_size: s; None: the number of voxels of a slice. The authors' checkpoints have 7744.
        checkpoint_slices: Number of slices whose activations are recomputed together in the backward pass; 0: no
            checkpointing; None: checkpointing if a batch of two would keep more than 4 GB.
        deep_supervision: Whether to build and return 1x1 heads on the backbone's lower levels.

    Shape:
        (B, M, *P) -> (B, K, *P); with deep supervision a list, full resolution first, with the levels' sizes in-plane
        and all slices.

    Raises:
        ValueError: for sizes that do not fit together; see `Topology.create`.
    """

    gated = False


class LSTMSA(_SliceNetwork):
    """LSTMSA: attention whose query, key and value are learnt projections gated by the states of ConvLSTMs.

    As `SALSTM`, with (c + f)/2 * W_q h, (g + h)/2 * W_k h and h * W_v h (element-wise) for query, key and value.

    Args, Shape, Raises: as for `SALSTM`.
    """

    gated = True


class _Decoder(nn.Module):
    """From features to logits; `seg_layers` are listed from full resolution down."""

    def __init__(
        self, widths: Sequence[int], num_classes: int, attention_size: int, gated: bool, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.outputs = len(widths)
        self.channels = channels = widths[0]
        self.lstms = nn.ModuleList(SliceLSTM(channels, reverse=reverse) for reverse in (False, True))
        self.attentions = nn.ModuleList(StateAttention(channels, attention_size, gated) for _ in range(2))
        lower = widths[1:] if deep_supervision else ()
        self.seg_layers = nn.ModuleList(nn.Conv2d(c, num_classes, kernel_size=1) for c in (2 * channels, *lower))
        nn.init.normal_(cast(Tensor, self.seg_layers[0].weight), std=_HEAD_STD)
        self.register_load_state_dict_pre_hook(drop_unused_heads)

    def forward(self, maps: list[Tensor], step: int, run: Callable) -> list[Tensor]:
        """Maps (B, D, H_l, W_l, C_l) -> logits (B, D, K, H_l, W_l); `run` calls functions on `step` slices."""
        finest, *lower = maps
        if self.deep_supervision:
            check_heads(self.seg_layers, self.outputs)
        logits = [self.head(finest, step, run)]
        logits += [_pointwise(layer, level) for layer, level in zip(list(self.seg_layers)[1:], lower, strict=False)]
        return [y.movedim(-1, 2) for y in logits]

    def head(self, features: Tensor, step: int, run: Callable) -> Tensor:
        """(B, D, H, W, C) -> (B, D, H, W, K)."""
        stacks = features.split(step, 1)
        logits = []
        for direction, lstm in enumerate(self.lstms):
            outputs, memory = [], None
            # In reading order, so that each part of the stack gets the memory of the previous one.
            for i, stack in enumerate(stacks[::-1] if lstm.reverse else stacks, start=1):
                out, memory = run(self._read, direction, stack, memory, i == len(stacks))
                outputs.append(out)
            logits.append(torch.cat(outputs[::-1] if lstm.reverse else outputs, 1))
        return logits[0] + logits[1]

    def head_of_slice(self, features: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
        """The result of `head` for one slice, from this slice and its neighbours, (B, 1, H, W, C) each."""
        logits = []
        for direction, (lstm, neighbour) in enumerate(zip(self.lstms, neighbours, strict=True)):
            _, memory = lstm(neighbour, None, False)
            logits.append(self._read(direction, features, memory, True)[0])
        return logits[0] + logits[1]

    def _read(self, direction: int, stack: Tensor, memory: Memory | None, last: bool) -> tuple[Tensor, Memory | None]:
        """One direction's contribution to the logits of a stack, and the memory of the slice read last."""
        states, memory = self.lstms[direction](stack, memory, last)
        layer = self.seg_layers[0]
        projection = cast(Tensor, layer.weight).flatten(1).chunk(2, 1)[direction]  # of the concatenated directions
        values, attention = self.attentions[direction](states)
        part = project(values, attention, projection).unflatten(2, stack.shape[2:4])
        return (part + cast(Tensor, layer.bias) if direction == 0 else part), memory


def _directly(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _chunk(stack: Tensor, channels: int) -> int:
    """Slices to process at a time without gradients: few enough that their gates fit into a cache or little memory."""
    gates = 4 * channels * stack[:, 0, 0].numel() * stack.element_size()
    return max(1, (_CPU_GATE_BYTES if stack.device.type == "cpu" else _CHUNK_BYTES) // gates)


def _pointwise(layer: nn.Module, maps: Tensor) -> Tensor:
    return F.linear(maps, cast(Tensor, layer.weight).flatten(1), cast(Tensor, layer.bias))


def _in_plane(
    conv_op: type[nn.Module],
    patch_size: int | Sequence[int],
    n_stages: int,
    features_per_stage: int | Sequence[int],
    *,
    kernel_sizes: PerStage,
    strides: PerStage,
) -> Topology:
    """The topology with kernels and strides of 1 along the slices' axis."""
    if spatial_dims(conv_op) == 3:
        kernels = [kernel_sizes] * n_stages if isinstance(kernel_sizes, int) else kernel_sizes
        steps = [1] + [strides] * (n_stages - 1) if isinstance(strides, int) else strides
        kernel_sizes, strides = ([_flat(value) for value in values] for values in (kernels, steps))
    return Topology.create(
        conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
    )


def _flat(value: int | Sequence[int]) -> tuple[int, ...]:
    return (1, value, value) if isinstance(value, int) else (1, *value[1:])


def _needed_chunk(channels: int, patch_size: tuple[int, ...]) -> int:
    """Slices to checkpoint at a time; 0 if little memory is needed without checkpointing."""
    per_slice = 2 * 4 * _KEPT_VALUES * channels * prod(patch_size[-2:])
    return 0 if per_slice * patch_size[0] <= _MAX_BYTES else max(1, _CHUNK_BYTES // per_slice)
