"""The cases of a downloaded data set: its files, found and checked by their names alone."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.converting.sets import PublicSet
from nnunet_ext.utils.messages import some_of

_DATASET = re.compile(r"(Dataset\d{3})_\w[\w\-]*")
_SPECIAL = {
    "{case}": "(?P<case>[A-Za-z0-9]+)",
    "*": "[^/]+",
    ".nii.gz": r"\.nii(?:\.gz)?",
    ".nii": r"\.nii(?:\.gz)?",
}
"""Parts of templates as regular expressions, longer ones first."""


@dataclass(frozen=True)
class Case:
    """Files of a case.

    Attributes:
        name: Identifier in the converted dataset.
        images: File of the image, or one per slice, sorted by name.
        labels: The same for the label map; empty for a test case.
    """

    name: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]


def find_cases(public: PublicSet, source: Path) -> list[Case]:
    """Returns the cases below a folder. Files of other names are ignored, and so are hidden ones.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for another layout than the data set's, with what was expected and what was found: no labelled
            case, a missing image or label map, or several files where there should be one.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    files = list(_files(source))
    images, labels = _matching(public.images, files), _matching(public.labels, files)
    tests = _matching(public.test_images, files) if public.test_images else {}
    if not labels or not images:
        missing = public.labels if images else public.images
        expected = ", ".join(shown(template) for template in (public.images, public.labels))
        found = some_of([str(path.relative_to(source)) for path in files], 3) or "no file"
        raise ValueError(f"{source} has no {shown(missing)}; {public.title} has {expected}; found: {found}")
    if twice := sorted(case for case in tests.keys() & images.keys() if tests[case] != images[case]):
        raise ValueError(f"{some_of(_names(tests, twice))}: test images of cases that are labelled too: keep one")
    if lonely := sorted(labels.keys() - images.keys()):
        raise ValueError(f"{some_of(_names(labels, lonely))}: label maps without an image, {shown(public.images)}")
    if lonely := sorted(images.keys() - labels.keys() - tests.keys()):
        raise ValueError(f"{some_of(_names(images, lonely))}: images without a label map, {shown(public.labels)}")
    return [
        Case(f"{public.prefix}_{case}", tuple((tests | images)[case]), tuple(labels.get(case, ())))
        for case in sorted(tests | images, key=lambda case: (len(case), case))
    ]


def check_target(target: Path) -> None:
    """Checks the name of the folder to write, and that no dataset has its number.

    Raises:
        ValueError: for another name than DatasetXXX_NAME.
        FileExistsError: if a dataset of that number exists; nothing is ever overwritten.
    """
    match = _DATASET.fullmatch(target.name)
    if match is None:
        raise ValueError(f"-o {target}: the folder must be named DatasetXXX_NAME, for example Dataset701_SynapseCT")
    siblings = sorted(target.parent.glob(f"{match[1]}_*")) if target.parent.is_dir() else []
    if siblings:
        raise FileExistsError(f"-o {target}: the number is taken by {some_of(list(map(str, siblings)))}; give another")


def shown(template: str) -> str:
    """A template as users read it, with N for the case."""
    return template.replace("{case}", "N")


def _files(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _matching(template: str, files: list[Path]) -> dict[str, list[Path]]:
    """Files of a template by case. The folders above `source` count as well, so that it may lie anywhere in the set."""
    parts = re.split(f"({'|'.join(map(re.escape, _SPECIAL))})", template)
    pattern = re.compile("(?:.*/)?" + "".join(_SPECIAL.get(part, re.escape(part)) for part in parts))
    found: dict[str, list[Path]] = {}
    for path in files:
        if match := pattern.fullmatch(path.absolute().as_posix()):
            found.setdefault(match["case"], []).append(path)
    for case, several in found.items():
        folders = {path.parent for path in several}
        if len(folders if "*" in template else several) > 1:
            copies = sorted(folders) if "*" in template else several
            raise ValueError(f"case {case} has several {shown(template)}: {some_of(list(map(str, copies)))}: keep one")
    return found


def _names(found: dict[str, list[Path]], cases: list[str]) -> list[str]:
    return [str(found[case][0]) for case in cases]
