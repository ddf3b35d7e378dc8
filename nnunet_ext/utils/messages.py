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


def named(noun: str, names: Sequence[str]) -> str:
    """A noun with its names, in the plural for several: fold 0; folds 0, 1."""
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
