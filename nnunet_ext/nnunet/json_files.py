"""JSON files that nnU-Net writes. It writes them in place, so that a kill leaves half of one."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is cut off or no JSON ({error}): run what writes it again") from error


def read_json_if_whole(path: Path) -> Any:
    """Returns the content of a JSON file, or None if the file is missing or incomplete."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
