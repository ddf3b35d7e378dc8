"""Job scripts as they are written, checked by shellcheck; test_slurm.py runs them in a real Slurm."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.crossval.cluster.jobs import JobOptions, make_jobs, parse_time
from nnunet_ext.utils.subprocesses import console_script


@pytest.fixture
def write(space, tmp_path, capsys):
    """Writes scripts by the command; their text by name."""
    preamble = tmp_path / "preamble.sh"
    preamble.write_text("module load cuda\nconda activate it\n")

    def run(engine, *options):
        arguments = [
            "crossval",
            "-d",
            "4",
            "-c",
            "2d_small",
            "-tr",
            "StockTrainer",
            "SASANTrainer",
            "--folds",
            "1",
            "3",
        ]
        cluster = ["--partition", "gpu", "--time", "24:00:00", "--preamble", str(preamble), "-o", str(space.report)]
        assert main([*arguments, *cluster, f"--{engine}", "--dry-run", *options]) == 0
        assert "to submit: bash " in capsys.readouterr().out
        return {file.stem: file.read_text() for file in (space.bookkeeping / engine).glob("*.sh")}

    return run


def directives(script, mark):
    return re.findall(rf"^#{mark} (.*)$", script, re.M)


STOCK, SASAN = "StockTrainer__nnUNetPlans", "SASANTrainer__nnUNetPlans"


def test_slurm(write, space):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    scripts = write("slurm", "--num-gpus", "2", "--job-option=--account=me", "--cpu-job-option=--partition=cpu")
    names = {f"train_{STOCK}", f"train_{SASAN}", f"pool_{STOCK}", f"pool_{SASAN}", "compare", "prepare", "submit"}
    assert set(scripts) == names
    train = directives(scripts[f"train_{SASAN}"], "SBATCH")
    for expected in ("--array=1,3", "--time=24:00:00", "--signal=B:USR1@600", "--requeue", "--gres=gpu:2"):
        assert expected in train
    assert "--account=me" in train
    assert "--cpus-per-task=1" in train  # nnUNet_n_proc_DA
    pool = directives(scripts[f"pool_{SASAN}"], "SBATCH")
    assert pool[-2:] == ["--account=me", "--partition=cpu"]
    assert not any(option.startswith(("--gres", "--array", "--signal")) for option in pool)
    body = scripts[f"train_{SASAN}"].splitlines()
    assert body.index("module load cuda") < body.index("conda activate it") < len(body) - 1
    assert f"export nnUNet_results={shlex.quote(str(space.results.parent))}" in body
    assert body[-1].startswith("exec ")
    assert body[-1].endswith(f'--only "train_{SASAN}_$SLURM_ARRAY_TASK_ID"')
    submitted = [line for line in scripts["submit"].splitlines() if line.startswith("submit ")]
    assert submitted == [
        "submit prepare",
        f"submit train_{STOCK} prepare",
        f"submit train_{SASAN} prepare",
        f"submit pool_{STOCK} train_{STOCK}",
        f"submit pool_{SASAN} train_{SASAN}",
        f"submit compare pool_{STOCK} pool_{SASAN}",
    ]


def test_lsf(write):
    scripts = write("lsf", "--num-gpus", "2", "--warn-before", "90")
    train = directives(scripts[f"train_{SASAN}"], "BSUB")
    assert f'-J "crossval-4-2d_small-train_{SASAN}[2,4]"' in train  # indices begin at 1
    for expected in ('-Q "75"', "-wa USR1 -wt 2", "-W 1440", '-gpu "num=2"', "-q gpu", "-r"):
        assert expected in train
    assert scripts[f"train_{SASAN}"].rstrip().endswith(f'--only "train_{SASAN}_$((LSB_JOBINDEX - 1))"')


@pytest.mark.parametrize("engine", ["slurm", "lsf"])
def test_shellcheck_has_nothing_to_say(write, space, engine):
    write(engine, "--ensemble", "--test", str(space.raw / "imagesTs"))
    files = sorted((space.bookkeeping / engine).glob("*.sh"))
    assert len(files) > 5
    files += sorted((Path(__file__).parent / "slurm").glob("*.sh"))  # what starts Slurm for the tests
    done = subprocess.run([console_script("shellcheck"), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_only_missing_folds_are_submitted(write, space):
    import torch

    fold = space.results / f"{SASAN}__2d_small" / "fold_1"
    (fold / "validation").mkdir(parents=True)
    (fold / "validation" / "summary.json").write_text("{}")
    torch.save({}, fold / "checkpoint_final.pth")
    assert "--array=3" in directives(write("slurm")[f"train_{SASAN}"], "SBATCH")


def test_scripts_of_earlier_calls_are_removed(write, space):
    write("slurm", "--ensemble")
    assert (space.bookkeeping / "slurm" / "ensemble.sh").is_file()
    assert "ensemble" not in write("slurm")


def test_lsf_submits_in_order(write, space, tmp_path):
    """bsub of this test answers as LSF's does and keeps what it was asked."""
    write("lsf")
    bsub = tmp_path / "bin" / "bsub"
    bsub.parent.mkdir()
    bsub.write_text(
        '#!/bin/bash\ncat > /dev/null\necho "$*" >> "$CALLS"\necho "Job <$(wc -l < "$CALLS")> is submitted."\n'
    )
    bsub.chmod(0o755)
    calls = tmp_path / "calls"
    environment = space.environment | {"PATH": f"{bsub.parent}:{space.environment['PATH']}", "CALLS": str(calls)}
    subprocess.run(["bash", str(space.bookkeeping / "lsf" / "submit.sh")], env=environment, check=True)
    jobs = [job.name for job in make_jobs(space.graph(folds=(1, 3)))]
    asked = dict(zip(jobs, calls.read_text().splitlines(), strict=True))
    number = {name: str(position + 1) for position, name in enumerate(jobs)}
    assert asked[f"pool_{SASAN}"] == f"-w done({number[f'train_{SASAN}']})"
    assert asked["compare"] == f"-w done({number[f'pool_{STOCK}']}) && done({number[f'pool_{SASAN}']})"


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


def test_without_slurm_the_scripts_are_there(write, space, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    options = ["-d", "4", "-c", "2d_small", "-tr", "SASANTrainer", "--folds", "0", "--slurm"]
    assert main(["crossval", *options]) == 2
    assert "there is no sbatch here; on a machine of the cluster: bash " in capsys.readouterr().err
    assert (space.bookkeeping / "slurm" / "submit.sh").is_file()
