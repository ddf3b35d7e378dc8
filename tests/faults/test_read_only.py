"""Folders that cannot be written are named in an error before any work is lost."""

import copy
import os
import shutil

import pytest

from nnunet_ext.cli.main import main


@pytest.fixture
def make_in(nnunet_environment, monkeypatch):
    """Makes a trainer with its results in a folder, as nnUNetv2_train does."""

    def make(results):
        import torch

        from nnunet_ext.trainers.SASANTrainer import SASANTrainer

        monkeypatch.setenv("nnUNet_results", str(results))
        plans = copy.deepcopy(nnunet_environment.plans) | {"continue_training": False}
        return SASANTrainer(plans, "3d_fullres_tiny", 0, nnunet_environment.dataset_json, torch.device("cpu"))

    return make


def test_a_training_into_a_read_only_folder_ends_at_once(make_in, read_only, nnunet, tmp_path):
    folder = read_only()
    with pytest.raises(OSError, match=f"Read-only file system: '{folder}/"):
        make_in(folder)
    # It was writable when the fold began: nnU-Net would train without a log up to the first checkpoint.
    make_in(tmp_path / "results")
    begun = read_only(tmp_path / "results", "begun")
    fold = begun / nnunet.dataset / "SASANTrainer__nnUNetPlans__3d_fullres_tiny" / "fold_0"
    with pytest.raises(OSError, match=f"cannot write into this folder: Read-only file system: '{fold}'"):
        make_in(begun)


def test_a_file_in_place_of_the_folder_is_named(make_in, tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(NotADirectoryError, match=f"Not a directory: '{tmp_path}/results"):
        make_in(tmp_path / "results")


def test_supervoxels_that_cannot_be_kept_are_named(make_trainer, nnunet_environment, read_only, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    make_trainer("FAFNetFewShotTrainer").do_split()  # else nnU-Net's own file is the first that cannot be written
    source = tmp_path / "preprocessed"
    # Other tests may have made supervoxels.
    shutil.copytree(nnunet_environment.preprocessed.parent, source, ignore=shutil.ignore_patterns("supervoxels"))
    folder = read_only(source)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    with pytest.raises(OSError, match=rf"Read-only file system: '{folder}/.*supervoxels"):
        make_trainer("FAFNetFewShotTrainer").get_dataloaders()


def test_commands_name_a_folder_that_they_cannot_write(make_model, nnunet, golden, read_only, tmp_path, capsys):
    folder = read_only()
    image, mask = sorted((nnunet.raw / "imagesTr").iterdir())[0], sorted((nnunet.raw / "labelsTr").iterdir())[0]
    shown = ("--model", str(make_model()), "--support", str(image), "--mask", str(mask), "--label", "1")
    for output in (folder, folder / "new"):
        assert main(["fewshot", *shown, "-i", str(nnunet.raw / "imagesTs"), "-o", str(output)]) == 2
        assert f"cannot write into this folder: Read-only file system: '{output}'" in capsys.readouterr().err
    import torch

    torch.save(golden("sasan").state_dict, tmp_path / "authors.pth")
    assert main(["import-weights", "sasan", str(tmp_path / "authors.pth"), str(folder / "ours.pth")]) == 2
    assert f"Read-only file system: '{folder}/ours.pth'" in capsys.readouterr().err
    assert main(["demo", "--folder", str(folder / "demo"), "--device", "cpu"]) == 2
    assert f"Read-only file system: '{folder}/demo'" in capsys.readouterr().err
    assert os.listdir(folder) == []


@pytest.mark.slow
@pytest.mark.long
def test_nnunets_command_ends_before_it_trains(nnunet, read_only, monkeypatch):
    folder = read_only()
    done = nnunet.attempt(
        *("nnUNetv2_train", "4", "3d_fullres_tiny", "0", "-tr", "SASANTrainer", "-device", "cpu"),
        nnUNet_results=str(folder),
    )
    assert done.returncode != 0
    assert f"Read-only file system: '{folder}/" in done.stdout
    assert "Epoch 0" not in done.stdout
