"""Installs a packed model, after it has been checked and has proved itself."""

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from uuid import uuid4

from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.trained_model import fold_names
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE, trainer_folder
from nnunet_ext.sharing.archive import check_members, check_room, extract
from nnunet_ext.sharing.code import code_in
from nnunet_ext.sharing.example import Example, example_predictor, prove
from nnunet_ext.sharing.manifest import (
    CARD,
    CODE_FOLDER,
    EXAMPLE,
    MANIFEST,
    Manifest,
    from_json,
    misfit_of_versions,
)
from nnunet_ext.utils.messages import some_of

_MODEL = re.compile(r"(Dataset\d{3}_[^/]+/[^/]+__[^/]+__[^/]+)/" + re.escape(MANIFEST))


@dataclass(frozen=True)
class Permissions:
    """What the user allows.

    Attributes:
        code: Whether the model may bring code, which then runs with all rights of the user.
        versions: Whether it may have been packed with other versions.
        overwrite: Whether an installed model of the same name is replaced.
    """

    code: bool = False
    versions: bool = False
    overwrite: bool = False


def install(
    file: Path, results: Path, permissions: Permissions, device: str = "cpu", show: Callable[[str], None] = print
) -> Path:
    """Installs a file of `pack` into nnU-Net's folder of results.

    The file is unpacked beside the place where it will be, is checked, predicts its example there, and is moved only
    then: a refused model leaves nothing behind.

    Args:
        file: The file.
        results: nnU-Net's folder of results.
        permissions: What is allowed.
        device: Where it proves itself.
        show: Receives what is found, line by line.

    Returns:
        The model's folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is refused, with the reason and what would do.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        with zipfile.ZipFile(file) as archive:
            return _install(archive, results, permissions, device, show)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is refused: it is no zip file, or it is cut off") from error
    except ValueError as error:
        raise ValueError(f"{file} is refused: {error}") from error


def _install(
    archive: zipfile.ZipFile, results: Path, permissions: Permissions, device: str, show: Callable[[str], None]
) -> Path:
    manifest = _read_manifest(archive)
    members = check_members(archive, manifest.model)
    target = results / manifest.model
    show(
        f"{manifest.model}, folds {', '.join(manifest.folds)}; licence: {manifest.licence}\n"
        f"packed with {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}"
    )
    if target.exists() and not permissions.overwrite:
        raise ValueError(f"{target} exists already; --overwrite replaces it")
    misfits = misfit_of_versions(manifest.versions)
    if misfits and not permissions.versions:
        raise ValueError(f"{'; '.join(misfits)}. Install what it needs, or try it with --any-version")
    results.mkdir(parents=True, exist_ok=True)
    check_room(members, results)
    with _folder_beside(target) as folder:
        model = folder / target.name
        names = {member.filename.removeprefix(f"{manifest.model}/"): member for member in members}
        sums = {name: extract(archive, member, model / name) for name, member in names.items()}
        _check_sums(manifest, sums)
        show((model / CARD).read_text(encoding="utf-8"))
        _check_code(manifest, model, permissions.code)
        if sorted(fold_names(model)) != sorted(manifest.folds):
            raise ValueError(f"its folds are not those of its manifest ({', '.join(manifest.folds)})")
        with _trainers_of(manifest, model):
            predictor = example_predictor(model, manifest.folds, manifest.checkpoint, device)
            agreement = prove(Example.read(model / EXAMPLE), predictor)
        show(f"The packed example, predicted here on {device}: {agreement}.")
        if not agreement.good:
            raise ValueError("it does not predict here what it predicted where it was packed")
        if target.exists():
            shutil.rmtree(target)
        os.replace(model, target)
    return target


def _read_manifest(archive: zipfile.ZipFile) -> Manifest:
    found = [match for name in archive.namelist() if (match := _MODEL.fullmatch(name))]
    if len(found) != 1:
        raise ValueError(
            f"it has {len(found) or 'no'} manifests of `nnunet_ext pack`. A zip of nnU-Net's own export has none and "
            "cannot be checked; if you trust its author, nnUNetv2_install_pretrained_model_from_zip installs it"
        )
    manifest = from_json(archive.read(found[0].group()).decode("utf-8", "replace"))
    if manifest.model != found[0][1]:
        raise ValueError(f"its manifest is that of {manifest.model}, in the folder of {found[0][1]}")
    return manifest


def _check_sums(manifest: Manifest, sums: dict[str, str]) -> None:
    there = {name: digest for name, digest in sums.items() if name != MANIFEST}
    faults = {
        "missing": [name for name in manifest.files if name not in there],
        "not in its manifest": [name for name in there if name not in manifest.files],
        "changed since it was packed": [
            name for name, digest in there.items() if manifest.files.get(name, digest) != digest
        ],
    }
    told = [f"{what}: {some_of(names)}" for what, names in faults.items() if names]
    needed = [name for name in (EXAMPLE, CARD, "plans.json", "dataset.json") if name not in there]
    if told or needed:
        raise ValueError(f"files are {'; '.join(told) or f'missing: {some_of(needed)}'}")


def _check_code(manifest: Manifest, model: Path, allowed: bool) -> None:
    found = list(code_in(model, read_plans(model / "plans.json"), manifest.code))
    if found and not allowed:
        raise ValueError(
            f"it brings code, which could do anything on this machine: {'; '.join(found)}. Read it, and allow it with "
            "--allow-code if you trust its author"
        )
    if not manifest.code and trainer_folder(manifest.trainer) is None:
        raise ValueError(f"its trainer {manifest.trainer} is not installed here, and the file does not bring it")


def _trainers_of(manifest: Manifest, model: Path) -> AbstractContextManager[object]:
    """Context in which nnU-Net finds the trainer that the model brings; the environment is restored afterwards."""
    named = (str(model / CODE_FOLDER), os.environ.get(TRAINERS_VARIABLE))
    brought = {TRAINERS_VARIABLE: os.pathsep.join(filter(None, named))} if manifest.code else {}
    return mock.patch.dict(os.environ, brought)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A folder on the target's disk, which is removed again."""
    folder = target.parent / f".installing_{uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the dataset's folder goes too, unless it holds a model
            target.parent.rmdir()
