"""Packs a trained model into one file: nnU-Net's zip with a manifest, a model card and an example."""

import ast
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.nnunet.trained_model import DEFAULT_CHECKPOINT, split_model_name, trained_folds
from nnunet_ext.nnunet.trainers import find_trainer, is_own_trainer, trainer_folder
from nnunet_ext.sharing.archive import write_archive
from nnunet_ext.sharing.card import Statements, model_card
from nnunet_ext.sharing.example import example_predictor, make_example
from nnunet_ext.sharing.manifest import (
    CARD,
    CODE_FOLDER,
    EXAMPLE,
    FORMAT,
    MANIFEST,
    Manifest,
    installed_versions,
)
from nnunet_ext.utils.files import sha256_of

NO_LICENCE = "not stated"
_PATHS = ("prediction_file", "reference_file")


def pack(
    model: str | Path,
    output: str | Path,
    folds: Sequence[str] | None = None,
    *,
    checkpoint: str = DEFAULT_CHECKPOINT,
    licence: str = NO_LICENCE,
    statements: Statements | None = None,
) -> Manifest:
    """Packs a trained model.

    Paths of this machine and the names of training cases stay out, except those in the plans and checkpoints
    themselves, which nnU-Net needs as they are: dataset.json, plans.json and the weights.

    Args:
        model: Its folder, DATASET/TRAINER__PLANS__CONFIGURATION.
        output: The file to write, which appears whole or not at all.
        folds: Folds; None: all that are trained.
        checkpoint: Name of the checkpoint.
        licence: The model's licence.
        statements: For the model card.

    Raises:
        FileNotFoundError: if the folder holds no such model.
        ValueError: for damaged files, and weights that could execute code when they are loaded.
    """
    model = Path(model).resolve()
    found = trained_folds(model, folds, checkpoint)
    named = split_model_name(model.name)
    if len(named) != 3:
        raise ValueError(f"{model} must be called TRAINER__PLANS__CONFIGURATION, as nnU-Net calls it")
    trainer, plans_name, configuration = named
    code = {f"{CODE_FOLDER}/{file.name}": file for file in _sources(trainer)}
    predictor = example_predictor(model, found, checkpoint)
    packages = {type(predictor.network).__module__.partition(".")[0], *_imports(code.values())}
    with tempfile.TemporaryDirectory() as folder:
        example = Path(folder) / "example.npz"
        make_example(predictor).write(example)
        files: dict[str, Path | str] = {**_nnunet_files(model, found, checkpoint), **code, EXAMPLE: example}
        manifest = Manifest(
            format=FORMAT,
            dataset=model.parent.name,
            trainer=trainer,
            plans=plans_name,
            configuration=configuration,
            folds=tuple(found),
            checkpoint=checkpoint,
            licence=licence,
            versions=_versions(packages),
            code=tuple(code),
            files={},
        )
        files[CARD] = model_card(manifest, model, predictor, statements or Statements())
        manifest = replace(manifest, files={name: _digest(content) for name, content in files.items()})
        files[MANIFEST] = manifest.to_json()
        write_archive(Path(output), {f"{manifest.model}/{name}": content for name, content in files.items()})
    return manifest


def _nnunet_files(model: Path, folds: Sequence[str], checkpoint: str) -> dict[str, Path | str]:
    """The files that nnU-Net's own zip has, by their names in the model's folder."""
    names = ["plans.json", "dataset.json", "dataset_fingerprint.json"]
    summaries = []
    for fold in folds:
        names += [f"fold_{fold}/{checkpoint}", f"fold_{fold}/progress.png"]
        summaries.append(f"fold_{fold}/validation/summary.json")
    results = f"crossval_results_folds_{'_'.join(folds)}"
    names += [f"{results}/postprocessing.{kind}" for kind in ("json", "pkl")]
    files: dict[str, Path | str] = {name: model / name for name in names if (model / name).is_file()}
    for name in (*summaries, f"{results}/summary.json"):
        if (model / name).is_file():
            files[name] = _without_cases(read_json(model / name))
    return files


def _without_cases(summary: dict[str, Any]) -> str:
    """nnU-Net's evaluation without the paths of this machine, which end in the names of the training cases."""
    cases = [
        {key: value for key, value in case.items() if key not in _PATHS} for case in summary.get("metric_per_case", [])
    ]
    return json.dumps(summary | {"metric_per_case": cases}, indent=2)


def _sources(trainer: str) -> list[Path]:
    """The source of a user's own trainer, with the modules beside it that it imports; none for others."""
    folder = trainer_folder(trainer)
    if folder is None or not is_own_trainer(trainer):
        return []
    # nnU-Net drops the module after the import; its name is its path in the folder.
    found: list[Path] = []
    waiting = [folder.joinpath(*find_trainer(trainer).__module__.split(".")).with_suffix(".py")]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.append(file)
            waiting += [path for name in _imports([file]) for path in folder.glob(f"{name}.py")]
    return found


def _imports(files: Iterable[Path]) -> Iterator[str]:
    """Packages and modules that files import, wherever in them."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of what importable packages belong to, and of what every model needs."""
    owners = metadata.packages_distributions()
    names = {owners[package][0] for package in packages if package in owners}
    return {"python": platform.python_version(), **installed_versions(names)}


def _digest(content: Path | str) -> str:
    return hashlib.sha256(content.encode()).hexdigest() if isinstance(content, str) else sha256_of(content)
