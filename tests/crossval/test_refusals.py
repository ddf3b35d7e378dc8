"""Calls that are refused before anything starts, each with the remedy."""

import json
import time

import pytest

from nnunet_ext.cli.main import main


@pytest.fixture
def refuse(space, capsys):
    """Calls the command, which must refuse in seconds and leave nothing behind; the message."""

    def call(*options, trainers=("StockTrainer", "SASANTrainer")):
        before = sorted(space.root.rglob("*"))
        began = time.monotonic()
        arguments = ["-d", "4", "-c", "2d_small", "-tr", *trainers, "-o", str(space.report), *options]
        assert main(["crossval", *arguments]) == 2
        assert time.monotonic() - began < 10
        assert sorted(space.root.rglob("*")) == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return call


LOCAL = ("--device", "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*LOCAL, "--baseline", "EMNetTrainer"), "is not among the trainers; take one of StockTrainer, SASANTrainer"),
        ((*LOCAL, "--folds", "5"), "has the folds 0 to 4; nnU-Net would train fold 5 on a random split"),
        ((*LOCAL, "-p", "nnUNetPlan"), "did you mean nnUNetPlans?"),
        ((*LOCAL, "-p", "nnUNetPlan"), "to plan for StockTrainer under this name, add --plan"),
        ((*LOCAL, "--partition", "gpu"), "--partition belongs to --slurm, without which this machine would train"),
        ((*LOCAL, "--time", "24:00:00"), "--time belongs to --slurm"),
        ((*LOCAL, "--cpus", "4"), "--cpus belongs to --slurm"),
        ((*LOCAL, "--job-option=--account=me"), "--job-option belongs to --slurm"),
        ((*LOCAL, "--gpu-job-option=--account=me"), "--gpu-job-option belongs to --slurm"),
        ((*LOCAL, "--cpu-job-option=--account=me"), "--cpu-job-option belongs to --slurm"),
        ((*LOCAL, "--preamble", "modules.sh"), "--preamble belongs to --slurm"),
        ((*LOCAL, "--warn-before", "60"), "--warn-before belongs to --slurm or --only"),
        (("--slurm", "--gpus", "0"), "leave it out, or give --num-gpus N"),
        (("--only", "compare", "--gpus", "0"), "leave it out, or give --num-gpus N"),
        (("--slurm", "--only", "compare"), "give one of them"),
        (("--slurm", "--time", "5", "--warn-before", "600"), "must be longer than the 600 s of --warn-before"),
        (("--slurm", "--warn-before", "0"), "must be at least 1 second"),
        (("--slurm", "--job-option=-A me"), "must be like --account=me"),
        (("--status", "--dry-run"), "--status and --dry-run exclude each other"),
        (("--dry-run", "--wait", *LOCAL), "--wait has nothing to wait for with --dry-run"),
        (("--json", *LOCAL), "--json belongs to --dry-run or --status"),
        ((*LOCAL, "--gpus", "0"), "--gpus needs --device cuda"),
        ((*LOCAL, "--gpu-memory", "40"), "changes nothing: none of our trainers needs a new plan"),
        ((*LOCAL, "--gpu-memory", "-1"), "--gpu-memory -1 must be above 0"),
        ((*LOCAL, "--repeats", "0"), "--repeats 0 must be at least 1"),
        ((*LOCAL, "--margin", "0"), "--margin 0 must be above 0"),
        ((*LOCAL, "--tolerance", "-2"), "--tolerance -2 must be above 0"),
        ((*LOCAL, "-np", "0"), "-np 0 must be at least 1"),
    ],
)
def test_refusals(refuse, options, message):
    assert message in refuse(*options)


@pytest.mark.parametrize("option", [("--margin", "1"), ("--tolerance", "1"), ("--untimed",)])
def test_the_reports_options_need_a_report(refuse, option):
    message = refuse(*LOCAL, *option, trainers=["SASANTrainer"])
    assert f"{option[0]} is an option of the report, which compares at least two trainers" in message


def test_lsf_is_gone(space, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["crossval", "-d", "4", "-c", "2d_small", "-tr", "SASANTrainer", "--slurm", "--lsf"])
    assert "unrecognized arguments: --lsf" in capsys.readouterr().err


def test_folds_are_those_of_the_split(space, refuse):
    """Three here: a fourth would be random, which `nnunet_ext compare` refuses after days."""
    first, second = sorted(path.name.removesuffix(".nii.gz") for path in (space.raw / "labelsTr").iterdir())[:2]
    cases = [{"train": [first], "val": [second]}] * 3
    (space.preprocessed / "splits_final.json").write_text(json.dumps(cases))
    assert space.experiment(folds=None).folds == (0, 1, 2)
    message = refuse(*LOCAL, "--folds", "0", "3")
    assert "splits_final.json has the folds 0 to 2" in message
    assert "write a splits_final.json with 4 folds" in message


def test_a_plan_is_made_under_the_trainers_default_name_or_on_request(space):
    commands = {
        name: space.graph(trainers=["SASANTrainer"], plans=(name,), **options).nodes[f"plan_{name}"].command()
        for name, options in (("nnUNetSASANPlans", {}), ("MyPlans", {"plan": True, "gpu_memory": 40.0}))
    }
    assert commands["nnUNetSASANPlans"][-2:] == ["--plans-name", "nnUNetSASANPlans"]
    assert commands["MyPlans"][-4:] == ["--plans-name", "MyPlans", "--gpu-memory", "40"]
    with pytest.raises(ValueError, match=r"-p MyPlans: .* known: .*; to plan for SASANTrainer under this"):
        space.graph(trainers=["SASANTrainer"], plans=("MyPlans",))


def _without(key):
    def change(content):
        del content[key]

    return change


def _with(key, value):
    def change(content):
        content[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("labels"), "dataset.json has no `labels`; expected, for example"),
        (_without("file_ending"), "dataset.json has no `file_ending`"),
        (_without("channel_names"), "dataset.json has no `channel_names`"),
        (_without("numTraining"), "dataset.json has no `numTraining`"),
        (_with("labels", {"background": 0, "Anterior": 1, "Posterior": 3}), "nnU-Net needs consecutive ones, 0, 1, 2"),
        (_with("labels", {"background": 0, "Anterior": "1"}), "a whole number without quotes"),
        (_with("labels", {"background": 0}), "there is nothing to segment"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on(space, refuse, change, message):
    file = space.raw / "dataset.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    assert message in refuse(*LOCAL)


def test_a_damaged_description_is_named(space, refuse):
    (space.raw / "dataset.json").write_text('{"labels": {"background": 0,},}')
    assert "dataset.json is cut off or not valid JSON" in refuse(*LOCAL)


def test_a_dataset_without_a_description(space, refuse):
    for folder in (space.raw, space.preprocessed):
        (folder / "dataset.json").unlink()
    assert "dataset.json is missing; it describes the dataset" in refuse(*LOCAL)


def test_the_preprocessed_description_suffices_when_raw_data_are_gone(space):
    (space.raw / "dataset.json").unlink()
    assert space.experiment().folds == (0, 1)


def test_fewer_cases_than_folds(space, refuse):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    for image in sorted((space.raw / "imagesTr").iterdir())[4:]:
        image.unlink()
    assert "4 training case(s) cannot be divided into nnU-Net's 5 folds" in refuse(*LOCAL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["hippocampus_001"]}, 'must be a list with one {"train": [cases], "val": [cases]} per fold'),
        ([{"train": ["of_another_dataset"], "val": []}] * 2, "names of_another_dataset, which are not among the"),
    ],
)
def test_a_split_that_does_not_fit(space, refuse, content, message):
    (space.preprocessed / "splits_final.json").write_text(json.dumps(content))
    assert message in refuse(*LOCAL)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a_0000", "a"], "a.nii.gz has no channel number and stands beside the scan a_0000"),
        (["a_0000", "a_0002"], "a has the channels 0000, 0002"),
        (["pat_2019", "pat_2020"], "a year for instance"),
        (["a_0000", "a_0001"], "a case of this dataset has 1 file(s), one per channel; not so a (2)"),
        (["a_0000", "._a_0000"], "hidden files that nnUNetv2_predict would take for scans, ._a_0000.nii.gz"),
    ],
)
def test_images_to_predict_that_are_misnamed(space, refuse, files, message):
    folder = space.root / "images"
    folder.mkdir()
    for name in files:
        (folder / f"{name}.nii.gz").touch()
    assert message in refuse(*LOCAL, "--test", str(folder))
