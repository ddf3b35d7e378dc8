"""Checks of a state dict's keys."""

from collections.abc import Iterable


def check_keys(network: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Raises ValueError, listing them, if keys are missing or left over."""
    given, expected = set(given), set(expected)
    missing, extra = sorted(expected - given), sorted(given - expected)
    if missing or extra:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in (("missing", missing), ("extra", extra)) if keys
        ]
        raise ValueError(f"these are not the authors' {network} weights: keys {'; '.join(parts)}")
