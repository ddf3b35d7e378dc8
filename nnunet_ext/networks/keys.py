"""Checks of a state dict's keys and shapes."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nnunet_ext.utils.messages import some_of


def check_keys(network: str, given: Iterable[str], expected: Iterable[str], whose: str = "the authors'") -> None:
    """Raises a ValueError that names the missing and the unexpected keys, if there are any."""
    given, expected = set(given), set(expected)
    missing, extra = sorted(expected - given), sorted(given - expected)
    if missing or extra:
        parts = [
            f"{len(keys)} {what}: {some_of(keys)}" for what, keys in (("missing", missing), ("extra", extra)) if keys
        ]
        raise ValueError(f"these are not {whose} {network} weights: keys {'; '.join(parts)}")


def load_checked(name: str, network: nn.Module, weights: Mapping[str, Tensor], whose: str = "the authors'") -> None:
    """Loads weights; raises a ValueError that names the tensors whose shapes differ, if there are any."""
    expected = network.state_dict()
    wrong = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if wrong:
        raise ValueError(f"these are not {whose} {name} weights: tensors of the wrong shape: {some_of(wrong)}")
    network.load_state_dict(weights)
