"""Numbers that `nnunet_ext bench` accepts."""

from collections.abc import Sequence


def check_numbers(
    repeats: int, batch_size: int | None, sizes: Sequence[int], tiles: Sequence[int] | None, threads: int | None
) -> None:
    """Checks the numbers of a measurement; None is a default.

    Raises:
        ValueError: for a number that is not positive, or fewer than two different numbers of tiles.
    """
    for name, values in (
        ("--repeats", [repeats]),
        ("--batch-size", [] if batch_size is None else [batch_size]),
        ("--sizes", sizes),
        ("--tiles", tiles or ()),
        ("--threads", [] if threads is None else [threads]),
    ):
        if values and min(values) < 1:
            raise ValueError(f"{name} {min(values)} must be at least 1")
    if tiles is not None and len(set(tiles)) < 2:
        raise ValueError(f"--tiles {tiles[0]} must be two different numbers or more: time is measured against them")
