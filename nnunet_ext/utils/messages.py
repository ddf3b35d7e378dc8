"""Parts of messages to users."""

from collections.abc import Sequence


def some_of(items: Sequence[str], limit: int = 5) -> str:
    """The first few items of a list, and the number of further ones.

    Args:
        items: Texts, in the order in which they are to be shown.
        limit: Number of items shown.
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
