"""Few-shot segmentation of a class from one labelled scan: a trained FAF-Net against an untrained one and copied masks.

python -m benchmarks.few_shot --model FOLDER --raw DATASET_FOLDER --preprocessed DATASET_FOLDER --label 2 [--supports 5]

Each support is a training case of fold 0; the scans to segment are that fold's validation cases. Rows:

* trained, untrained: the model, and the same model with random weights; each slice is segmented with the support's
  slice at the same relative position, and the label's surroundings there compete with it (``--match position --sectors
  8``);
* trained, untrained, three parts: the same with the paper's protocol, the command's default;
* shown slices copied: the support slices of the paper's three parts, each copied to every slice of its part;
* whole mask copied: the support's mask laid over the scan, voxel by voxel;
* whole mask resized: the support's mask stretched to the scan's size. The last two know the support's whole mask and,
  because these scans are cropped around the structure, its position.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import write_rows
from nnunet_ext.fewshot.baselines import laid_over, slices_laid_over, stretched
from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.fewshot.run import evaluate, segment_scans
from nnunet_ext.nnunet.scans import scan_of

_PROTOCOLS = {"": {"match": "position", "sectors": 8}, ", three parts": {"match": "extent", "sectors": 0}}
COPIES = {"shown slices copied": slices_laid_over, "whole mask copied": laid_over, "whole mask resized": stretched}


def reset(network: torch.nn.Module, seed: int = 0) -> None:
    """Reinitialises all weights.

    Raises:
        TypeError: for a module that has weights but cannot reinitialise them, and so would stay trained.
    """
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(module).__name__} has weights and no reset_parameters")


def dice(model_folder: Path, raw: Path, training: Sequence[str], validation: Sequence[str], label: int) -> list[dict]:
    """One row per support case and method, with the mean Dice over the validation cases."""
    trained, untrained = FewShotModel(model_folder), FewShotModel(model_folder)
    for network in untrained.networks:
        reset(network)
    endings = trained.endings
    scans = [scan_of(raw / "imagesTr" / f"{case}_0000.nii.gz", endings) for case in validation]
    truth = {case: _mask(trained, raw, case, label) for case in [*training, *validation]}
    rows = []
    for case in training:
        example = scan_of(raw / "imagesTr" / f"{case}_0000.nii.gz", endings), raw / "labelsTr" / f"{case}.nii.gz"
        found = {}
        for name, model in (("trained", trained), ("untrained", untrained)):
            for suffix, protocol in _PROTOCOLS.items():
                model.show([example], [label], **protocol)
                with tempfile.TemporaryDirectory() as folder:
                    failures = segment_scans(model, scans, Path(folder))
                    table, missing = evaluate(model, scans, Path(folder), raw / "labelsTr")
                if failures or missing:
                    raise RuntimeError(f"not all scans could be segmented: {[*failures, *missing]}")
                found[name + suffix] = table[label].mean()
        for name, copy in COPIES.items():
            found[name] = np.mean([_dice(copy(truth[case], truth[q].shape), truth[q]) for q in validation])
        rows += [{"label": label, "support": case, "method": name, "dice": f"{v:.3f}"} for name, v in found.items()]
    return rows


def _mask(model: FewShotModel, raw: Path, case: str, label: int) -> NDArray[np.bool_]:
    return model.reader.read_seg(str(raw / "labelsTr" / f"{case}.nii.gz"))[0][0] == label


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def means(rows: Sequence[dict]) -> dict[str, float]:
    """Mean Dice of each method over the supports."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {m: float(np.mean([float(row["dice"]) for row in rows if row["method"] == m])) for m in methods}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--preprocessed", type=Path, required=True)
    parser.add_argument("--label", type=int, required=True)
    parser.add_argument("--supports", type=int, default=5)
    arguments = parser.parse_args(argv)
    split = json.loads((arguments.preprocessed / "splits_final.json").read_text())[0]
    training = split["train"][: arguments.supports]
    rows = dice(arguments.model, arguments.raw, training, split["val"], arguments.label)
    budget = torch.load(arguments.model / "fold_0" / "checkpoint_final.pth", weights_only=False)["nnunet_ext"]["budget"]
    setting = f"{arguments.model.name}, {budget['epochs'] * budget['iterations']} iterations"
    write_rows("few_shot_hippocampus", [{"setting": setting, "precision": "float32", "seed": 0, **row} for row in rows])
    print(means(rows))


if __name__ == "__main__":
    main()
