"""The manifest: what a packed model is, what it needs, and the checksums of its files."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata

from nnunet_ext.nnunet.trained_model import model_name

FORMAT = 1
OWN_FOLDER = "nnunet_ext_model"
"""Folder in the model's folder for all that nnU-Net's own zip does not have."""
MANIFEST, CARD, EXAMPLE = (f"{OWN_FOLDER}/{name}" for name in ("manifest.json", "model_card.md", "example.npz"))
CODE_FOLDER = f"{OWN_FOLDER}/trainers"
_EXACT = ("nnunet_ext", "nnunetv2")
"""Packages whose minor version must be at least, and whose major version must be, that of the packed model."""


@dataclass(frozen=True)
class Manifest:
    """A packed model.

    Attributes:
        format: Version of this format.
        dataset: Name of the dataset, such as Dataset004_Hippocampus.
        trainer: Name of the trainer.
        plans: Name of the plans.
        configuration: Such as 3d_fullres.
        folds: Such as ("0", "1").
        checkpoint: Name of the checkpoint in the folder of each fold.
        licence: The model's licence, or "not stated".
        versions: Versions by package, those that the network needs included, and of Python.
        code: Files of the trainer's source, relative to the model's folder; none for trainers of ours or nnU-Net's.
        files: sha256 of every other file by its path relative to the model's folder.
    """

    format: int
    dataset: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    checkpoint: str
    licence: str
    versions: dict[str, str]
    code: tuple[str, ...]
    files: dict[str, str]

    @property
    def model(self) -> str:
        """The model's folder below nnU-Net's results."""
        return f"{self.dataset}/{model_name(self.trainer, self.plans, self.configuration)}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def from_json(text: str) -> Manifest:
    """Reads a manifest.

    Raises:
        ValueError: for a damaged one, or one of a newer format.
    """
    try:
        content = json.loads(text)
        found = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("its manifest is damaged") from error
    if found != FORMAT:
        raise ValueError(
            f"its manifest has format {found}, and this version of nnunet_ext reads format {FORMAT}; update nnunet_ext"
        )
    wanted = [field.name for field in fields(Manifest)]
    if set(content) != set(wanted):
        raise ValueError(f"its manifest is damaged: it has {', '.join(content)} instead of {', '.join(wanted)}")
    for name in ("folds", "code"):
        content[name] = tuple(content[name])
    return Manifest(**content)


def misfit_of_versions(versions: Mapping[str, str]) -> list[str]:
    """What stands against running a model here: a sentence for each package that is missing, older or of another major.

    Args:
        versions: Versions by package, as the model was packed with.
    """
    found = []
    for package, theirs in versions.items():
        if package == "python":
            continue
        try:
            ours = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.append(f"it needs {package}, which is not installed: pip install {package}=={theirs}")
            continue
        if package in _EXACT:
            there, here = _release(theirs), _release(ours)
            if there[0] != here[0] or there > here:
                found.append(f"it was packed with {package} {theirs}, and {ours} is installed")
    return found


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = (*version.split("."), "0", "0")
    return int(major), int(minor)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of installed packages, and of those that every model needs."""
    return {name: metadata.version(name) for name in sorted({"nnunet_ext", "nnunetv2", "torch", "numpy", *packages})}
