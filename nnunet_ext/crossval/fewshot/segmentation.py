"""Segments the queries of a fold with every method and support, and writes the masks."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.crossval.completion import is_newer
from nnunet_ext.crossval.fewshot.cases import LabelledCases, coded, write_map
from nnunet_ext.crossval.fewshot.protocol import Protocol
from nnunet_ext.crossval.fewshot.supports import FoldDraw
from nnunet_ext.fewshot.baselines import slices_laid_over, stretched
from nnunet_ext.fewshot.grid_prototypes import GridPrototypes
from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.scans import Scan
from nnunet_ext.nnunet.trained_model import DEFAULT_CHECKPOINT, split_model_name
from nnunet_ext.nnunet.trainers import find_trainer, register_trainers

COPIED, RESIZED, PROTOTYPES = "mask copied", "mask resized", "encoder prototypes"
LOCAL = "local prototypes"
"""`GridPrototypes` of the features that the network has learned."""
Example = tuple[Scan, Path, int]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Folders:
    """Where masks are written.

    Attributes:
        root: Folder of the protocol's results.
        ending: Ending of the files.
    """

    root: Path
    ending: str

    @property
    def truth(self) -> Path:
        return self.root / "truth"

    def support(self, method: str, number: int) -> Path:
        """Folder of a method's masks with the draw of a number, from 1."""
        return self.root / "masks" / method.replace(" ", "_") / f"support_{number}"

    def files(self, method: str, supports: int, case: str) -> list[Path]:
        """Files of a method's masks of a case, one for each draw."""
        return [self.support(method, number) / f"{case}{self.ending}" for number in range(1, supports + 1)]

    def true_file(self, case: str) -> Path:
        return self.truth / f"{case}{self.ending}"


def methods_of(trained: str) -> tuple[str, ...]:
    """Names of the methods that are compared, the trained network first."""
    return trained, LOCAL, PROTOTYPES, COPIED, RESIZED


def untrained(model: FewShotModel, folder: Path, fold: int, seed: int) -> FewShotModel:
    """The same model with grid prototypes of its encoder as it was before training, instead of the network.

    The trainer itself makes the encoder, from the seed or from the pretrained weights from which it starts.

    Args:
        model: The trained model.
        folder: ``TRAINER__PLANS__CONFIGURATION`` of nnU-Net's results.
        fold: Number of the fold.
        seed: Seed of what is initialised at random.
    """
    trainer_name, _, configuration = split_model_name(folder.name)
    register_trainers()
    with (
        tempfile.TemporaryDirectory() as nowhere,
        mock.patch.dict(os.environ, {"nnUNet_results": nowhere}),
        redirect_stdout(StringIO()),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(seed)
        plans = read_plans(folder / "plans.json") | {"continue_training": False}
        trainer: Any = find_trainer(trainer_name)(plans, configuration, fold, model.dataset, torch.device("cpu"))
        trainer.initialize()
        network = trainer.plain_network
    return model.with_networks([GridPrototypes(network)])


def segment_fold(
    draw: FoldDraw,
    folder: Path,
    cases: LabelledCases,
    protocol: Protocol,
    folders: Folders,
    *,
    trained: str,
    device: str,
) -> None:
    """Writes the masks of a fold's queries that are missing, or older than the fold's training or than their labels.

    Args:
        draw: Supports and queries.
        folder: ``TRAINER__PLANS__CONFIGURATION`` of nnU-Net's results.
        cases: Scans and their labels.
        protocol: The settings.
        folders: Where masks are written.
        trained: Name of the trained method.
        device: Name of torch's device.
    """
    checkpoint = folder / f"fold_{draw.fold}" / DEFAULT_CHECKPOINT
    methods = methods_of(trained)

    shown = [case for support in draw.supports for case in support.values()]

    def missing(case: str) -> bool:
        of_methods = [file for method in methods for file in folders.files(method, protocol.supports, case)]
        sources = [checkpoint, *(cases.truths[each] for each in (case, *shown))]
        return not all(is_newer(file, sources) for file in [folders.true_file(case), *of_methods])

    queries = [case for case in draw.queries if missing(case)]
    if not queries:
        return
    values = [protocol.classes[name] for support in draw.supports for name in support]
    model = FewShotModel(folder, device, [draw.fold])
    networks = {
        trained: model,
        LOCAL: model.by_local_prototypes(),
        PROTOTYPES: untrained(model, folder, draw.fold, protocol.seed),
    }
    with tempfile.TemporaryDirectory() as temporary:
        examples = list(_examples(cases, shown, values, Path(temporary)))
        encoded = {name: each.encode_each(examples, protocol.parts) for name, each in networks.items()}
    masks = [np.isin(cases.labels(case).values, of_class) for case, of_class in zip(shown, values, strict=True)]
    copies: dict[str, Callable[[Masks, Sequence[int]], Masks]] = {
        COPIED: lambda mask, shape: slices_laid_over(mask, shape, protocol.parts),
        RESIZED: stretched,
    }
    axes = list(model.plans.transpose_forward)
    for case in tqdm(queries, f"Segmenting fold {draw.fold}", unit="scan", disable=None):
        truth, label_map = cases.masks(case, protocol.classes)
        found = {name: each.segment_each(cases.scans[case], encoded[name]) for name, each in networks.items()}
        for name, make in copies.items():
            copied = [in_axes(make, mask, truth.shape[1:], axes) for mask in masks]
            found[name] = np.stack(copied), dict(label_map.properties)
        for name, (of_draws, properties) in found.items():
            files = folders.files(name, protocol.supports, case)
            for file, of_draw in zip(files, np.split(of_draws, protocol.supports), strict=True):
                write_map(cases.reader, coded(of_draw), file, folders.ending, properties)
        ignored = None if cases.ignore is None else label_map.values == cases.ignore
        write_map(cases.reader, coded(truth, ignored), folders.true_file(case), folders.ending, label_map.properties)


def in_axes(
    make: Callable[[Masks, Sequence[int]], Masks], mask: Masks, shape: Sequence[int], axes: Sequence[int]
) -> Masks:
    """Applies a function of a mask and a size to axes in the order of the plans, whose first one counts the slices."""
    made = make(mask.transpose(axes), [shape[axis] for axis in axes])
    return made.transpose(np.argsort(axes))


def _examples(
    cases: LabelledCases, shown: Sequence[str], values: Sequence[tuple[int, ...]], folder: Path
) -> Iterator[Example]:
    """Support scans with files of masks in which the class alone has the value 1."""
    for number, (case, of_class) in enumerate(zip(shown, values, strict=True)):
        found, scan = cases.labels(case), cases.scans[case]
        file = folder / f"{number}_{case}{scan.ending}"
        mask = np.isin(found.values, of_class).astype(np.uint8)
        write_map(cases.reader, mask, file, scan.ending, found.properties)
        yield scan, file, 1


def draws_as_rows(draws: Sequence[FoldDraw]) -> list[Mapping[str, Any]]:
    """Support scans by fold, number of the draw, and class."""
    return [
        {"fold": str(draw.fold), "repeat": number, "label": name, "support": case}
        for draw in draws
        for number, support in enumerate(draw.supports, start=1)
        for name, case in support.items()
    ]
