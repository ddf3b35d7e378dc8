"""Jobs and what each asks of Slurm; test_slurm.py runs them in a real one."""

import json
import subprocess
from pathlib import Path

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.crossval.cluster.jobs import JobOptions, make_jobs, parse_option, parse_time
from nnunet_ext.crossval.cluster.slurm import SlurmExecutor
from nnunet_ext.utils.subprocesses import console_script

STOCK, SASAN = "StockTrainer__nnUNetPlans", "SASANTrainer__nnUNetPlans"


@pytest.fixture
def describe(space, capsys):
    """Jobs of a dry run, by name."""

    def run(*options):
        arguments = ["-d", "4", "-c", "2d_small", "-tr", "StockTrainer", "SASANTrainer", "--folds", "1", "3"]
        further = ["--slurm", "--dry-run", "--json", "-o", str(space.report)]
        assert main(["crossval", *arguments, *further, *options]) == 0
        content = json.loads(capsys.readouterr().out)
        return {job["name"].removeprefix("crossval-4-2d_small-"): job for job in content["jobs"]}

    return run


def test_jobs_and_their_dependencies(describe, space):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    jobs = describe("--num-gpus", "2", "--device", "cuda", "--time", "24:00:00", "--cpu-job-option=--partition=cpu")
    names = [f"train_{STOCK}", f"train_{SASAN}", f"pool_{STOCK}", f"pool_{SASAN}", "compare"]
    assert list(jobs) == ["prepare", *names]
    train, pool = jobs[f"train_{SASAN}"], jobs[f"pool_{SASAN}"]
    assert train["steps"] == [f"train_{SASAN}_1", f"train_{SASAN}_3"]
    assert train["after"] == ["crossval-4-2d_small-prepare"]
    assert train["options"] == {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "time": "24:00:00",
        "gres": "gpu:2",
        "comment": str(space.bookkeeping),
    }
    own = describe("--job-option=--comment=mine")["compare"]["options"]
    assert own["comment"] == f"mine {space.bookkeeping}"
    assert pool["options"]["partition"] == "cpu"
    assert "gres" not in pool["options"]
    assert jobs["compare"]["after"] == [f"crossval-4-2d_small-pool_{name}" for name in (STOCK, SASAN)]


def test_the_script_of_an_array_is_sound(space, tmp_path):
    """As submitit writes it, checked by shellcheck."""
    submitit = pytest.importorskip("submitit")
    preamble = "module load cuda\nconda activate it"
    options = JobOptions(time="24:00:00", warning_seconds=300, cpus=3, options=("--account=me",), preamble=preamble)
    job = next(job for job in make_jobs(space.graph()) if job.name == f"train_{SASAN}")
    parameters = SlurmExecutor(options)._parameters(space.experiment(), job, "24:00:00")
    from submitit.slurm.slurm import _make_sbatch_string

    assert submitit.__version__
    text = _make_sbatch_string("python", tmp_path, map_count=2, **parameters)
    for expected in ("--account=me", "--array=0-1%2", "--requeue", "--time=24:00:00", "--cpus-per-task=3"):
        assert f"#SBATCH {expected}\n" in text
    assert "@300\n" in text
    assert f"export nnUNet_results='{space.results.parent}'" in text
    assert text.index("module load cuda") < text.index("conda activate it") < text.index("srun ")
    script = tmp_path / "job.sh"
    script.write_text(text)
    files = [script, *sorted((Path(__file__).parent / "slurm").glob("*.sh"))]  # and what starts Slurm for the tests
    done = subprocess.run([console_script("shellcheck"), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_only_missing_folds_are_submitted(describe, space):
    import torch

    fold = space.results / f"{SASAN}__2d_small" / "fold_1"
    (fold / "validation").mkdir(parents=True)
    (fold / "validation" / "summary.json").write_text("{}")
    torch.save({}, fold / "checkpoint_final.pth")
    assert describe()[f"train_{SASAN}"]["steps"] == [f"train_{SASAN}_3"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("24:00:00", 86400), ("2-12", 216000), ("1-00:30", 88200), ("1-00:00:05", 86405)],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


def test_wrong_times():
    with pytest.raises(ValueError, match="--time tomorrow: must be like 90"):
        parse_time("tomorrow")
    with pytest.raises(ValueError, match=r"--time 00:10:00 must be longer than the 600 s of --warn-before"):
        JobOptions(time="00:10:00")


def test_options_of_sbatch():
    assert parse_option("--account=me") == ("account", "me")
    assert parse_option("--exclusive") == ("exclusive", True)
    with pytest.raises(ValueError, match="the option '-A me' of sbatch must be like --account=me"):
        JobOptions(options=("-A me",))


def test_without_slurm_it_says_so(space, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    options = ["-d", "4", "-c", "2d_small", "-tr", "SASANTrainer", "--folds", "0", "--slurm"]
    assert main(["crossval", *options]) == 2
    assert "sbatch was not found; run this on a machine of the cluster" in capsys.readouterr().err
