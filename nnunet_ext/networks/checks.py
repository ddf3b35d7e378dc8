"""Checks of the user's input that all networks share."""

from collections.abc import Sequence

from torch import Tensor


def check_widths(input_channels: int, num_classes: int) -> None:
    """Raises ValueError unless there are at least one input channel and one class."""
    if input_channels < 1:
        raise ValueError(f"`input_channels`={input_channels} must be at least 1")
    if num_classes < 1:
        raise ValueError(f"`num_classes`={num_classes} must be at least 1; check the labels in dataset.json")


def check_input(x: Tensor, input_channels: int, patch_size: Sequence[int]) -> None:
    """Raises a ValueError that names both shapes unless x has the shape (B, input_channels, *patch_size)."""
    expected = (input_channels, *patch_size)
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"this network was built for inputs of shape (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}; "
            "its weights are tied to the patch size of the plan"
        )
