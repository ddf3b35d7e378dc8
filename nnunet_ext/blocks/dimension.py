"""2D and 3D from one class: everything that depends on the number of spatial axes is looked up here."""

from torch import nn

_BY_CONVOLUTION: dict[type[nn.Module], int] = {nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def spatial_dims(conv_op: type[nn.Module]) -> int:
    """Number of spatial axes of a convolution class.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.

    Raises:
        ValueError: for any other class.
    """
    if conv_op not in _BY_CONVOLUTION:
        raise ValueError(f"`conv_op`={conv_op!r} is not supported; use torch.nn.Conv2d or torch.nn.Conv3d")
    return _BY_CONVOLUTION[conv_op]


def conv_op_of(axes: int) -> type[nn.Module]:
    """The convolution class for 2 or 3 spatial axes."""
    return next(conv_op for conv_op, n in _BY_CONVOLUTION.items() if n == axes)


def conv_transpose_op(conv_op: type[nn.Module]) -> type[nn.Module]:
    """The transposed convolution class that belongs to `conv_op`."""
    return _TRANSPOSED[spatial_dims(conv_op)]


def max_pool_op(conv_op: type[nn.Module]) -> type[nn.Module]:
    """The max-pooling class that belongs to `conv_op`."""
    return _MAX_POOL[spatial_dims(conv_op)]


def batch_norm_op(conv_op: type[nn.Module]) -> type[nn.Module]:
    """The batch norm class that belongs to `conv_op`."""
    return _BATCH_NORM[spatial_dims(conv_op)]


def dropout_op(conv_op: type[nn.Module]) -> type[nn.Module]:
    """The class of dropout of whole channels that belongs to `conv_op`."""
    return _DROPOUT[spatial_dims(conv_op)]
