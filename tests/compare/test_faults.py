"""`nnunet_ext compare` with a full or read-only disk, and with files that a kill cut off."""

import os
import re

import pytest

from nnunet_ext.cli.main import main

FILES = ["cases.csv", "report.html", "report.md", "summary.json"]
CALL = ("compare", "-d", "4", "-tr", "nnUNetTrainer", "SASANTrainer", "-np", "1", "-o")


@pytest.mark.slow
@pytest.mark.parametrize("room", [0.1, 0.9], ids=["of little", "of all but the page's last part"])
def test_a_full_disk_leaves_the_report_that_was_there(results, small_disk, tmp_path, capsys, room):
    cache = ("--cache", str(tmp_path / "cache"))
    assert main([*CALL, str(tmp_path / "whole"), *cache]) == 0
    size = sum(file.stat().st_size for file in (tmp_path / "whole").iterdir())
    disk = small_disk(8)
    for name in FILES:
        (disk / name).write_text(f"the old {name}")
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(8 * 2**20 - round(room * size) - 2**15))
    capsys.readouterr()
    assert main([*CALL, str(disk), *cache]) == 2
    assert re.search(rf"No space left on device: '{disk}/(report|cases|summary)\.\w+'", capsys.readouterr().err)
    assert sorted(os.listdir(disk)) == [*FILES[:1], "filler", *FILES[1:]]
    for name in FILES:
        assert (disk / name).read_text() == f"the old {name}"


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(results, read_only, tmp_path, capsys):
    folder = read_only()
    assert main([*CALL, str(folder)]) == 2
    assert f"cannot write into this folder: Read-only file system: '{folder}'" in capsys.readouterr().err
    assert main([*CALL, str(tmp_path / "report"), "--cache", str(folder / "cache")]) == 2
    assert f"cannot write into this folder: Read-only file system: '{folder}/cache'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*CALL, str(tmp_path / "file")]) == 2
    assert f"cannot write into this folder: File exists: '{tmp_path}/file'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["validation/summary.json", "../dataset.json", "a prediction", "the truth"])
def test_a_file_that_is_cut_off_is_named(results, tmp_path, capsys, name):
    fold = results.model("SASANTrainer") / "fold_0"
    case = results.splits[0]["val"][0]
    file = {"a prediction": fold / "validation" / f"{case}.nii.gz", "the truth": results.truth(case)}.get(name)
    file = file or (fold / name).resolve()
    file.write_bytes(file.read_bytes()[:-50])
    assert main([*CALL, str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert f"{file} is cut off" in error or f"{file} cannot be read: {file} is cut off or damaged" in error
    assert not (tmp_path / "report" / "report.html").exists()
