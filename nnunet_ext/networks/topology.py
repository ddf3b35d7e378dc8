"""A plan's topology (stages, features, kernels, strides, patch), checked in one place for all networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, lcm, prod
from typing import Any

from torch import nn

from nnunet_ext.blocks.dimension import conv_op_of, spatial_dims

PerStage = int | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Topology:
    """Sizes of an encoder, one entry per stage; build it with `Topology.create`.

    Attributes:
        patch_size: P in voxels.
        features: Channels per stage.
        kernel_sizes: Odd kernel size per stage and axis.
        strides: Stride into each stage per axis; all 1 for the first stage.
        sizes: Spatial size P_l per stage in voxels.
    """

    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]

    @classmethod
    def create(
        cls,
        conv_op: type[nn.Module],
        patch_size: int | Sequence[int],
        n_stages: int,
        features_per_stage: int | Sequence[int],
        *,
        kernel_sizes: PerStage,
        strides: PerStage,
        divisible: bool = True,
    ) -> "Topology":
        """Broadcasts scalars over stages and axes and checks everything.

        Args:
            conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
            patch_size: P in voxels, per axis.
            n_stages: Number of stages.
            features_per_stage: Channels per stage.
            kernel_sizes: Odd kernel sizes, per stage and axis.
            strides: Stride into each stage, per stage and axis.
            divisible: Whether the strides must divide the patch; otherwise `sizes` are rounded up.

        Raises:
            ValueError: for a wrong length, an even kernel, a stride into the first stage, or a patch that is not
                divisible by the strides (the message names the axis and the nearest sizes).
        """
        n = spatial_dims(conv_op)
        if n_stages < 2:
            raise ValueError(f"`n_stages`={n_stages} must be at least 2: an encoder and a decoder level")
        patch = _per_axis("patch_size", patch_size, n)
        features = numbers_per_stage("features_per_stage", features_per_stage, n_stages)
        kernels = _per_stage_and_axis("kernel_sizes", kernel_sizes, n_stages, n)
        if any(k % 2 == 0 for stage in kernels for k in stage):
            raise ValueError(f"`kernel_sizes`={kernels} must be odd, so that convolutions keep the size")
        if isinstance(strides, int):
            strides = [1] + [strides] * (n_stages - 1)
        steps = _per_stage_and_axis("strides", strides, n_stages, n)
        if any(s != 1 for s in steps[0]):
            raise ValueError(f"`strides[0]`={steps[0]} must be all 1: the first stage works at full resolution")
        for name, values in (("patch_size", (patch,)), ("strides", steps)):
            if any(v < 1 for value in values for v in value):
                raise ValueError(f"`{name}`={values if name == 'strides' else values[0]} must be positive")
        return cls(patch, features, kernels, steps, _level_sizes(patch, steps, divisible))

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def n_stages(self) -> int:
        """Number of stages, full resolution included."""
        return len(self.features)

    @property
    def conv_op(self) -> type[nn.Module]:
        """``torch.nn.Conv2d`` or ``torch.nn.Conv3d``."""
        return conv_op_of(self.spatial_dims)

    def arguments(self) -> dict[str, Any]:
        """The topology in nnU-Net's constructor vocabulary."""
        return {
            "patch_size": self.patch_size,
            "n_stages": self.n_stages,
            "features_per_stage": self.features,
            "conv_op": self.conv_op,
            "kernel_sizes": self.kernel_sizes,
            "strides": self.strides,
        }


def total_strides(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Products of the strides of several stages, per axis."""
    return tuple(prod(axis) for axis in zip(*strides, strict=True))


def patch_multiples(
    declared: int | Sequence[int], axes: int, strides: Sequence[Sequence[int]] | None = None
) -> tuple[int, ...]:
    """Multiples required of a patch's sizes, per axis.

    Args:
        declared: Multiple of every axis, or one per axis, of which 2D uses the last.
        axes: Number of axes.
        strides: Strides into the stages, if their products are required too; None otherwise.

    Raises:
        ValueError: for the wrong number of declared multiples, or one below 1.
    """
    every = (declared,) * axes if isinstance(declared, int) else tuple(declared)[-axes:]
    if len(every) != axes or min(every) < 1:
        raise ValueError(f"`patch_multiple`={declared} must be a positive number, or one per axis")
    if strides is None:
        return every
    return tuple(lcm(m, total) for m, total in zip(every, total_strides(strides), strict=True))


def numbers_per_stage(name: str, value: int | Sequence[int], n_stages: int) -> tuple[int, ...]:
    """Broadcasts one number over stages.

    Raises:
        ValueError: for a wrong length, or a number below 1.
    """
    values = (value,) * n_stages if isinstance(value, int) else tuple(int(v) for v in value)
    _check_length(name, values, n_stages, "stages")
    if any(v < 1 for v in values):
        raise ValueError(f"`{name}`={values} must be positive")
    return values


def _per_axis(name: str, value: int | Sequence[int], n: int) -> tuple[int, ...]:
    values = (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)
    _check_length(name, values, n, "spatial axes")
    return values


def _per_stage_and_axis(name: str, value: PerStage, n_stages: int, n: int) -> tuple[tuple[int, ...], ...]:
    stages: tuple[int | Sequence[int], ...] = (value,) * n_stages if isinstance(value, int) else tuple(value)
    _check_length(name, stages, n_stages, "stages")
    return tuple(_per_axis(f"{name}[{i}]", stage, n) for i, stage in enumerate(stages))


def _check_length(name: str, values: Sequence, expected: int, of_what: str) -> None:
    if len(values) != expected:
        raise ValueError(f"`{name}` must have {expected} entries ({of_what}), got {len(values)}: {list(values)}")


def _level_sizes(
    patch: tuple[int, ...], strides: tuple[tuple[int, ...], ...], divisible: bool
) -> tuple[tuple[int, ...], ...]:
    totals = [1] * len(patch)
    for stage in strides:
        totals = [t * s for t, s in zip(totals, stage, strict=True)]
    for axis, (size, total) in enumerate(zip(patch, totals, strict=True)):
        if divisible and size % total:
            below, above = size // total * total, ceil(size / total) * total
            nearest = " and ".join(str(i) for i in (below, above) if i)
            raise ValueError(f"`patch_size[{axis}]`={size} must be divisible by {total}; nearest: {nearest}")
    sizes, current = [], list(patch)
    for stage in strides:
        current = [ceil(c / s) for c, s in zip(current, stage, strict=True)]
        sizes.append(tuple(current))
    return tuple(sizes)
