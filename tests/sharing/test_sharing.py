"""A packed model is installed as it was, proves itself, and is refused with the reason if anything is wrong."""

import hashlib
import json
import os
import pickle
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation as POSTPROCESSING,
)

from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.checkpoints import FINAL_CHECKPOINT
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE
from nnunet_ext.sharing.example import Example
from nnunet_ext.sharing.manifest import CARD, CODE_FOLDER, EXAMPLE, MANIFEST
from tests.helpers.own_trainers import write_own_trainers
from tests.helpers.unpickling import Calls

MODEL = "Dataset004_Hippocampus/{}__nnUNetPlans__{}"


def write_model(results, trainer, configuration):
    """A model's folder as training leaves it."""
    model = results / MODEL.format(type(trainer).__name__, configuration)
    (model / "fold_0" / "validation").mkdir(parents=True)
    trainer.save_checkpoint(str(model / "fold_0" / FINAL_CHECKPOINT))
    for name, content in (("plans", trainer.my_init_kwargs["plans"]), ("dataset", trainer.dataset_json)):
        (model / f"{name}.json").write_text(json.dumps(content))
    case = {"prediction_file": "/home/me/patient_7.nii.gz", "reference_file": "/home/me/7.nii.gz", "metrics": {}}
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {}, "metric_per_case": [case]}
    (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
    return model


@pytest.fixture
def packed(make_trainer, tmp_path):
    """Packs a model of a trainer; the file and the model's folder."""

    def pack(trainer="StockTrainer", configuration="3d_fullres_tiny", *options):
        model = write_model(tmp_path / "theirs", make_trainer(trainer, configuration), configuration)
        assert main(["pack", str(model), "-o", str(tmp_path / "model.zip"), *options]) == 0
        return tmp_path / "model.zip", model

    return pack


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def install(file, results, *options):
    return main(["install", str(file), "--results", str(results), "-device", "cpu", *options])


@pytest.mark.parametrize(
    ("trainer", "configuration"), [("SASANTrainer", "3d_fullres_tiny"), ("EMNetTrainer", "2d_tiny")]
)
def test_a_model_is_installed_as_it_was_and_proves_itself(packed, tmp_path, capsys, trainer, configuration):
    file, model = packed(trainer, configuration, "--licence", "CC-BY-4.0", "--intended-use", "Teaching.")
    capsys.readouterr()
    assert install(file, tmp_path / "ours") == 0
    printed = capsys.readouterr().out
    assert "licence: CC-BY-4.0" in printed
    assert "## Intended use\n\nTeaching." in printed
    assert "100.00 % of the voxels have the packed label" in printed
    installed = contents(tmp_path / "ours" / MODEL.format(trainer, configuration))
    theirs = contents(model)
    for name in ("plans.json", "dataset.json", f"fold_0/{FINAL_CHECKPOINT}"):
        assert installed[name] == theirs[name]
    assert {CARD, EXAMPLE, MANIFEST} <= installed.keys()
    assert b"patient_7" not in b"".join(installed.values())
    assert [path.name for path in (tmp_path / "ours" / "Dataset004_Hippocampus").iterdir()] == [model.name]


def test_an_installed_model_is_replaced_only_on_request(packed, tmp_path, capsys):
    file, _ = packed()
    assert install(file, tmp_path / "ours") == 0
    mark = tmp_path / "ours" / MODEL.format("StockTrainer", "3d_fullres_tiny") / "mine.txt"
    mark.touch()
    assert install(file, tmp_path / "ours") == 2
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert mark.is_file()
    assert install(file, tmp_path / "ours", "--overwrite") == 0
    assert not mark.exists()


def test_the_commands_of_nnunet_install_it_too(packed, tmp_path, monkeypatch):
    file, model = packed()
    monkeypatch.setattr("nnunetv2.model_sharing.model_import.nnUNet_results", str(tmp_path / "ours"))
    install_model_from_zip_file(str(file))
    installed = contents(tmp_path / "ours" / MODEL.format("StockTrainer", "3d_fullres_tiny"))
    assert installed["plans.json"] == (model / "plans.json").read_bytes()


@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
def test_the_example_is_of_the_data_s_intensities_and_moves_the_model(packed, tmp_path, nnunet, configuration):
    _, model = packed("StockTrainer", configuration)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path)
    example = Example.read(tmp_path / "Dataset004_Hippocampus" / model.name / EXAMPLE)
    patch = nnunet.plans["configurations"][configuration]["patch_size"]
    assert example.image.shape == (1, *([1, *patch] if len(patch) == 2 else patch))
    known = nnunet.plans["foreground_intensity_properties_per_channel"]["0"]
    assert known["percentile_00_5"] <= example.image.min() < example.image.max() <= known["percentile_99_5"]
    assert len(np.unique(example.mask)) > 1
    assert example.means.sum() == pytest.approx(1, abs=1e-4)


def test_the_card_takes_dice_and_interval_from_a_report(packed, tmp_path, capsys):
    report = tmp_path / "report"
    report.mkdir()
    comparison = {"entrant": "StockTrainer", "metric": "dice", "label": "mean", "mean_of_labels": True}
    comparison |= {"difference": -0.01, "interval_low": -0.02, "interval_high": 0.0, "verdict": "worse"}
    summary = {"entrants": ["StockTrainer", "Other"], "means": [], "labels": {"a": 1, "b": 2}, "cases": 3}
    summary |= {"folds": ["0"], "baseline": "Other", "comparisons": [comparison]}
    (report / "summary.json").write_text(json.dumps(summary))
    rows = [f"StockTrainer,1,case{i},0,{label},{dice}" for i, dice in enumerate((0.7, 0.8, 0.9)) for label in "ab"]
    (report / "cases.csv").write_text("\n".join(["entrant,repeat,case,fold,label,dice", *rows, "Other,1,c,0,a,0.1"]))
    packed("StockTrainer", "3d_fullres_tiny", "--report", str(report))
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        card = archive.read(f"{MODEL.format('StockTrainer', '3d_fullres_tiny')}/{CARD}").decode()
    assert "| mean | 0.800 (0.7" in card
    assert "Difference of mean Dice to Other: -0.010 (95% interval -0.020 to +0.000): worse." in card
    summary["entrants"] = ["Other"]
    (report / "summary.json").write_text(json.dumps(summary))
    model = tmp_path / "theirs" / MODEL.format("StockTrainer", "3d_fullres_tiny")
    assert main(["pack", str(model), "-o", str(tmp_path / "b.zip"), "--report", str(report)]) == 2
    assert "is no report of `nnunet_ext compare` on StockTrainer" in capsys.readouterr().err
    assert not (tmp_path / "b.zip").exists()


class Archive:
    """The members of a packed file, to be changed."""

    def __init__(self, file):
        with zipfile.ZipFile(file) as archive:
            self.members = {member.filename: archive.read(member) for member in archive.infolist()}
        (self.manifest_name,) = (name for name in self.members if name.endswith(MANIFEST))
        self.folder = self.manifest_name.removesuffix(MANIFEST)
        self.manifest = json.loads(self.members[self.manifest_name])
        self.links = set()

    def name(self, part):
        return self.folder + part

    def add(self, name, content):
        """Adds or replaces a file of the model, as if it had been packed so."""
        self.members[self.name(name)] = content
        self.manifest["files"][name] = hashlib.sha256(content).hexdigest()

    def write(self, file):
        self.members[self.manifest_name] = json.dumps(self.manifest).encode()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in self.members.items():
                member = zipfile.ZipInfo(name)
                member.external_attr = (stat.S_IFLNK | 0o777 if name in self.links else 0o644) << 16
                archive.writestr(member, content)


def leads_out(archive, tmp_path):
    archive.members[archive.name("../../../evil.py")] = b""


def is_absolute(archive, tmp_path):
    archive.members[f"{tmp_path}/evil.py"] = b""


def of_windows(archive, tmp_path):
    archive.members["C:\\evil.py"] = b""


def beside_the_model(archive, tmp_path):
    archive.members["Dataset004_Hippocampus/evil.py"] = b""


def links(archive, tmp_path):
    archive.add("link", b"/etc/passwd")
    archive.links.add(archive.name("link"))


def adds(archive, tmp_path):
    archive.members[archive.name("more.txt")] = b""


def removes(archive, tmp_path):
    del archive.members[archive.name("plans.json")]


def changes(archive, tmp_path):
    archive.members[archive.name("dataset.json")] += b" "


def newer(archive, tmp_path):
    archive.manifest["versions"]["nnunet_ext"] = "99.0.0"


def other_nnunet(archive, tmp_path):
    archive.manifest["versions"]["nnunetv2"] = "1.7.0"


def needs_more(archive, tmp_path):
    archive.manifest["versions"]["not_a_package"] = "1.2"


def newer_format(archive, tmp_path):
    archive.manifest["format"] = 2


def damaged_manifest(archive, tmp_path):
    del archive.manifest["licence"]


def has_no_manifest(archive, tmp_path):
    archive.manifest_name = archive.name("nothing.json")
    del archive.members[archive.name(MANIFEST)]


def of_another_folder(archive, tmp_path):
    archive.manifest["dataset"] = "Dataset005_Other"


def predicts_otherwise(archive, tmp_path):
    (tmp_path / "e.npz").write_bytes(archive.members[archive.name(EXAMPLE)])
    example = Example.read(tmp_path / "e.npz")
    example.mask[:] = 1 - np.clip(example.mask, 0, 1)
    example.write(tmp_path / "e.npz")
    archive.add(EXAMPLE, (tmp_path / "e.npz").read_bytes())


def executes_in_a_checkpoint(archive, tmp_path):
    name = f"fold_0/{FINAL_CHECKPOINT}"
    (tmp_path / "c.pth").write_bytes(archive.members[archive.name(name)])
    content = torch.load(tmp_path / "c.pth", weights_only=True) | {
        "more": Calls(os.system, f"touch {tmp_path}/executed")
    }
    torch.save(content, tmp_path / "c.pth")
    archive.add(name, (tmp_path / "c.pth").read_bytes())


def executes_in_a_pickle(archive, tmp_path):
    archive.add(
        "crossval_results_folds_0/postprocessing.pkl", pickle.dumps(Calls(os.system, f"touch {tmp_path}/executed"))
    )


def hides_in_a_pickle(archive, tmp_path):
    """Harmless names stand last before the import, but other ones are on the stack."""
    texts = ("posix", "system", POSTPROCESSING.__module__, POSTPROCESSING.__name__)
    pushed = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in texts)
    call = f"touch {tmp_path}/executed".encode()
    content = b"\x80\x04" + pushed + b"00" + b"\x93" + b"\x8c" + bytes([len(call)]) + call + b"\x85R."
    archive.add("crossval_results_folds_0/postprocessing.pkl", content)


def names_a_foreign_class(archive, tmp_path):
    plans = json.loads(archive.members[archive.name("plans.json")])
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "subprocess.Popen"
    archive.add("plans.json", json.dumps(plans).encode())


def leads_through_a_module(archive, tmp_path):
    plans = json.loads(archive.members[archive.name("plans.json")])
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["conv_op"] = "torch.nn.modules.module.torch.os.abort"
    archive.add("plans.json", json.dumps(plans).encode())


def brings_a_script(archive, tmp_path):
    archive.add("setup.py", b"print()")


REFUSED = {
    leads_out: "whose name leads out of the model's folder",
    is_absolute: "whose name leads out of the model's folder",
    of_windows: "whose name leads out of the model's folder",
    beside_the_model: "'Dataset004_Hippocampus/evil.py' outside of the model's folder",
    links: "it has the link",
    adds: "files are not in its manifest: more.txt",
    removes: "files are missing: plans.json",
    changes: "files are changed since it was packed: dataset.json",
    newer: "it was packed with nnunet_ext 99.0.0, and",
    other_nnunet: "it was packed with nnunetv2 1.7.0, and",
    needs_more: "it needs not_a_package, which is not installed: pip install not_a_package==1.2",
    newer_format: "its manifest has format 2",
    damaged_manifest: "its manifest is damaged",
    has_no_manifest: "it has no manifests of `nnunet_ext pack`",
    of_another_folder: "its manifest is that of Dataset005_Other/",
    predicts_otherwise: "it does not predict here what it predicted where it was packed",
    executes_in_a_checkpoint: f"it brings code.*fold_0/{FINAL_CHECKPOINT} holds Python objects \\(posix.system\\)",
    executes_in_a_pickle: "it brings code.*postprocessing.pkl calls posix.system",
    hides_in_a_pickle: "it brings code.*postprocessing.pkl calls ",
    names_a_foreign_class: "it brings code.*plans.json names the class subprocess.Popen",
    leads_through_a_module: "it brings code.*plans.json names the class torch.nn.modules.module.torch.os.abort",
    brings_a_script: "it brings code.*setup.py can be executed",
}


def test_what_is_wrong_is_refused_with_the_reason_and_leaves_nothing(packed, tmp_path, capsys, subtests):
    file, _ = packed()
    for change, reason in REFUSED.items():
        with subtests.test(change.__name__):
            archive = Archive(file)
            change(archive, tmp_path)
            archive.write(tmp_path / "changed.zip")
            assert install(tmp_path / "changed.zip", tmp_path / "ours") == 2
            error = capsys.readouterr().err
            assert f"{tmp_path / 'changed.zip'} is refused: " in error
            assert re.search(reason, error, re.DOTALL)
            assert not list((tmp_path / "ours").rglob("*"))
            assert not (tmp_path / "executed").exists()
            assert not list(tmp_path.rglob("evil.py"))


def test_a_damaged_or_missing_file_is_refused(packed, tmp_path, capsys):
    file, _ = packed()
    (tmp_path / "cut.zip").write_bytes(file.read_bytes()[:-2000])
    assert install(tmp_path / "cut.zip", tmp_path / "ours") == 2
    assert "is no zip file, or it is cut off" in capsys.readouterr().err
    assert install(tmp_path / "none.zip", tmp_path / "ours") == 2
    assert "no such file" in capsys.readouterr().err


def test_other_versions_are_tried_on_request(packed, tmp_path):
    archive = Archive(packed()[0])
    newer(archive, tmp_path)
    archive.write(tmp_path / "changed.zip")
    assert install(tmp_path / "changed.zip", tmp_path / "ours", "--any-version") == 0


def test_the_postprocessing_of_nnunet_is_no_code(packed, tmp_path):
    archive = Archive(packed()[0])
    harmless = ([POSTPROCESSING] * 2, [{"labels_or_regions": [1]}] * 2)
    archive.add("crossval_results_folds_0/postprocessing.pkl", pickle.dumps(harmless))
    archive.write(tmp_path / "changed.zip")
    assert install(tmp_path / "changed.zip", tmp_path / "ours") == 0


def test_the_trainer_of_a_user_travels_as_code_that_must_be_allowed(packed, tmp_path, capsys, monkeypatch):
    mine = write_own_trainers(tmp_path / "mine")
    monkeypatch.setenv("nnUNet_extTrainer", mine)
    file, _ = packed("HalvingTrainer")
    assert "with the source of HalvingTrainer; who installs it must allow code" in capsys.readouterr().out
    monkeypatch.setenv("nnUNet_extTrainer", "")
    shutil.rmtree(tmp_path / "mine")
    assert install(file, tmp_path / "ours") == 2
    assert "is the source of a trainer" in capsys.readouterr().err
    assert install(file, tmp_path / "ours", "--allow-code") == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "ours" / MODEL.format("HalvingTrainer", "3d_fullres_tiny") / CODE_FOLDER
    assert f"{os.pathsep}{folder}" in printed
    assert [path.suffix for path in folder.iterdir()] == [".py"]
    assert os.environ[TRAINERS_VARIABLE] == ""


def test_only_a_model_s_folder_is_packed(tmp_path, capsys):
    assert main(["pack", str(tmp_path), "-o", str(tmp_path / "model.zip")]) == 2
    assert "is not a folder of a trained model" in capsys.readouterr().err
    assert not Path(tmp_path / "model.zip").exists()
