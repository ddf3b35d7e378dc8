"""Scores kept in one file per pair of segmentation maps, found again by the content of the maps."""

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_ext.compare import metrics
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.lesions import column_names
from nnunet_ext.utils.files import replacing, sha256

Scores = dict[str, dict[str, Any]]


def content_key(
    truth: Path, prediction: Path, labels: LabelSet, tolerances: Mapping[str, float], lesions: Collection[str] = ()
) -> str:
    """SHA-256 of everything that the scores depend on, in hexadecimal digits."""
    header = {
        "version": metrics.VERSION,
        "labels": [[name, value] for name, value in labels.labels.items()],
        "ignore_label": labels.ignore_label,
        "reader": labels.reader,
        "tolerances": [tolerances[name] for name in labels.labels],
        **({"lesions": sorted(lesions)} if lesions else {}),
        "truth": _file_hash(truth, truth.stat().st_mtime_ns),
        "prediction": _file_hash(prediction, prediction.stat().st_mtime_ns),
    }
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def read(folder: Path, key: str, labels: Mapping[str, Any], lesions: Collection[str] = ()) -> Scores | None:
    """Returns the scores, or None if there are none or the file is damaged."""
    try:
        content = json.loads((folder / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    fields = set(metrics.LabelScores.__dataclass_fields__)
    expected = {label: fields | set(column_names() if label in lesions else ()) for label in labels}
    whole = isinstance(content, dict) and all(set(content.get(label) or ()) == expected[label] for label in labels)
    return content if whole else None


def write(folder: Path, key: str, scores: Scores) -> None:
    """Writes a file that appears complete or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(folder / f"{key}.json", "w", shared=True) as file:
        file.write(json.dumps(scores))


@lru_cache(maxsize=4096)
def _file_hash(path: Path, changed: int) -> str:
    """SHA-256 of a file's bytes; `changed`, its time of writing, tells a new file from an old one of the same name."""
    return sha256(path)
