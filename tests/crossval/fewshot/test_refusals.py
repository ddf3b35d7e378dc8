"""Mistakes are answered before anything starts."""

import json
import shlex

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.cli.main import main, make_parser
from tests.helpers.pages import block, page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test-classes", "rod", "cone"), "unknown class 'cone'; known: rod, ball"),
        (("-tr", "FAFNetTrainer"), "FAFNetTrainer does not train without labels, so the test classes would steer"),
        (("-tr", "StockTrainer"), "StockTrainer does not train without labels"),
        (
            ("-tr", "FAFNetFewShotTrainers"),
            "unknown trainer 'FAFNetFewShotTrainers': neither nnU-Net's, nor in a folder",
        ),
        (("--supports", "2"), r"no patient of fold 0 besides its 2 support(s) has the class 'rod', so that there is"),
        (
            ("--supports", "9", "--support-from", "training"),
            "has 8 patient(s) with the class 'rod', too few for support 9",
        ),
        (("--supports", "0"), "--supports 0 must be at least 1"),
        (("--parts", "0"), "--parts 0 must be at least 1"),
        (("--folds", "5"), "--folds 5: nnU-Net's default split has the folds 0 to 4"),
        (("-c", "3d_cascade_fullres"), "-c 3d_cascade_fullres needs the segmentation of a previous stage, which new"),
        (("--folds", "all"), "--folds all: must be numbers from 0 on"),
        (("--model", "folder"), "--model belongs to a trained model"),
        (("--local-prototypes",), "--local-prototypes is one of the methods that --protocol paper compares"),
        (("--sectors", "8"), "--match, --sectors and --checkpoint are not options of the paper's protocol"),
        (
            ("--encoder-weights", "nowhere.pth"),
            "--encoder-weights: the encoder of FAFNetFewShotTrainer can",
        ),
        (
            ("-tr", "FAFNetFewShotTrainer", "--encoder", "resnet18"),
            "--encoder: the encoder of FAFNetFewShotTrainer cannot be chosen; give a trainer",
        ),
        (("-p", "OtherPlans"), "-p OtherPlans: there is no"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(shapes, capsys, options, message):
    assert main(shapes.options(*options)) == 2
    assert message in capsys.readouterr().err
    assert not shapes.output.exists()
    assert not list(shapes.results.parent.iterdir())


def test_a_class_that_no_patient_of_a_fold_has(shapes, capsys):
    """The ball is erased in all but two patients of one fold."""
    kept = {"p0", "p1"}
    for case in shapes.cases:
        if case[:2] not in kept:
            file = str(shapes.raw / "labelsTr" / f"{case}.nii.gz")
            image = sitk.ReadImage(file)
            values = sitk.GetArrayFromImage(image)
            changed = sitk.GetImageFromArray(np.where(values == 2, 0, values))
            changed.CopyInformation(image)
            sitk.WriteImage(changed, file)
    assert main(shapes.options()) == 2
    assert "has the class 'ball': leave it out with --test-classes" in capsys.readouterr().err


def test_options_need_the_protocol_or_the_model(shapes, capsys):
    for name, options in (
        ("--setting", ["--setting", "1"]),
        ("--supports", ["--supports", "2"]),
        ("-np", ["-np", "1"]),
    ):
        assert main(["fewshot", *options, "-o", "out"]) == 2
        assert f"{name} belongs to --protocol paper: add it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fewshot", "--protocol", "paper", "-d", "777"])
    assert "the following arguments are required: -o/--output, --setting" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fewshot", "--label", "1"])
    assert "are required: --model, --support, --mask, -i/--input, -o/--output" in capsys.readouterr().err


def test_a_folder_of_other_settings_is_not_mixed_in(shapes, capsys):
    shapes.output.mkdir()
    (shapes.output / "settings.json").write_text(json.dumps({"settings": {"setting": 1}, "draws": {}}))
    assert main(shapes.options()) == 2
    message = capsys.readouterr().err
    assert "has results of other settings (dataset, " in message
    assert ", setting, " in message


def test_the_commands_of_the_page_are_understood():
    lines = block(page("fewshot"), "bash", "--protocol paper").splitlines()
    assert len(lines) == 3
    for line in lines:
        found = make_parser()[0].parse_args(shlex.split(line)[1:])
        assert (found.protocol, found.dataset, found.configuration) == ("paper", "DATASET", "2d")
        assert found.setting in (1, 2)
