"""Errors, warnings and the spelling of options on the command line."""

import argparse
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch

from nnunet_ext.bench.setting import NETWORKS
from nnunet_ext.cli import main as command
from nnunet_ext.cli.border import is_users_mistake, warnings_of_ours
from nnunet_ext.cli.main import main, make_parser
from nnunet_ext.cli.names import IMPORTABLE, MEASURED, known_name
from nnunet_ext.cli.spelling import respelled
from nnunet_ext.nnunet.trained_model import pair_plans
from nnunet_ext.plans import planner_for
from nnunet_ext.utils.devices import choose_device
from nnunet_ext.weights.authors import IMPORTERS

MISTAKE = partial(pair_plans, ["A", "B", "C"], ["x", "y"])
"""Raises a ValueError of ours."""
FAULT = partial(torch.zeros(2).view, -5)
"""Raises an error from within torch."""


def error_of(function):
    with pytest.raises((ValueError, RuntimeError, OSError, KeyError)) as caught:
        function()
    return caught.value


def in_a_pool(function):
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        (MISTAKE, True),
        (partial(planner_for, type("Own", (), {"planner": "nnunet_ext.plans.NoPlanner"})), True),  # raised in `plans`
        (partial(open, "/no/such/file"), True),
        (partial(choose_device, "no such device"), False),  # a KeyError
        (partial(int, "one"), False),
        (FAULT, False),
    ],
)
def test_mistakes_of_users_are_told_from_faults(function, mistake):
    assert is_users_mistake(error_of(function)) == mistake


@pytest.mark.parametrize(("function", "mistake"), [(MISTAKE, True), (partial(int, "one"), False)])
def test_mistakes_are_recognised_across_processes(function, mistake):
    assert is_users_mistake(error_of(partial(in_a_pool, function))) == mistake


def test_a_fault_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(command.trainers, "run", lambda arguments: int("one"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["trainers"])


def test_only_our_warnings_are_shown():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "warnoptions", [])
            with warnings_of_ours():
                for module in ("nnunet_ext.training", "nnunet_ext", "nnunet_extra", "torch.nn"):
                    warnings.warn_explicit(f"of {module}", UserWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in seen] == ["of nnunet_ext.training", "of nnunet_ext"]


@pytest.mark.parametrize(
    ("command_name", "given", "expected"),
    [
        ("predict", ["-step-size", "1"], ["-step_size", "1"]),
        ("predict", ["--step_size=1", "--disable-tta"], ["-step_size=1", "--disable_tta"]),
        ("plan", ["-gpu_memory_target", "8", "-overwrite_plans_name", "x"], ["--gpu-memory", "8", "--plans-name", "x"]),
        ("plan", ["-overwrite_target_spacing", "1", "-2", "3"], ["--overwrite-target-spacing", "1", "-2", "3"]),
        ("crossval", ["-d", "4", "--no-such_option", "--", "-step-size"], None),
    ],
)
def test_options_are_understood_in_every_spelling(command_name, given, expected):
    assert respelled(given, make_parser()[1][command_name]) == (expected or given)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words in (("nnunet_ext", "cross"), ("nnunet_ext", "plan", "--gpu")):
        typed, before = words[-1], words[-2]
        script += f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        script += f"_shtab_nnunet_ext nnunet_ext {typed} {before}; echo ${{COMPREPLY[@]}}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["crossval", "--gpu-memory"]


def test_names_of_networks_are_those_of_the_registries():
    assert sorted(IMPORTABLE) == sorted(IMPORTERS)
    assert list(MEASURED) == list(NETWORKS)
    assert known_name("EM_NET", MEASURED) == "EM-Net"
    assert known_name("UMambaEnc", IMPORTABLE) == "umamba_enc"
    assert known_name("EMNetwork", IMPORTABLE) is None


STANDARD = {
    "-d": "--dataset",
    "-c": "--configuration",
    "-tr": "--trainers",
    "-p": "--plans",
    "-f": "--folds",
    "-i": "--input",
    "-o": "--output",
    "-device": "--device",
}


@pytest.mark.parametrize("name", sorted(make_parser()[1]))
def test_the_same_options_are_spelt_the_same_everywhere(name):
    parser: argparse.ArgumentParser = make_parser()[1][name]
    for short, long in STANDARD.items():
        singular = {"--trainers": "--trainer", "--configuration": "--configurations"}.get(long, long)
        for action in parser._actions:
            spellings = set(action.option_strings)
            if spellings & {short, long, singular}:
                assert short in spellings, (name, spellings)
                assert spellings & {long, singular}, (name, spellings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "-d", "4", "-tr", "SASANTrainer", "--gpu-memory", "0"], "--gpu-memory 0 must be positive"),
        (["plan", "-d", "4", "-tr", "SASSANTrainer"], "unknown trainer 'SASSANTrainer'; did you mean SASANTrainer?"),
        (["networks", "--trainers", "SASANTrainer"], "--trainers needs --plans"),
        (["networks", "--plans", "no_such_file.json"], "no such file: no_such_file.json"),
        (["bench", "--repeats", "0"], "--repeats 0 must be at least 1"),
        (["bench", "--networks", "SASSAN"], "unknown network 'SASSAN'"),
        (["check", "NoSuchTrainer"], "unknown trainer 'NoSuchTrainer'"),
        (["import-weights", "sassan", "in.pth", "out.pth"], "unknown network 'sassan'"),
        (["crossval", "-d", "4", "-c", "2d", "-tr", "SASSANTrainer"], "unknown trainer 'SASSANTrainer'"),
        (
            ["predict", "-i", "in", "-o", "out", "-d", "4", "-c", "2d", "-step_size", "0"],
            "-step_size 0 must be above 0",
        ),
    ],
)
def test_mistakes_are_answered_before_anything_heavy_is_imported(arguments, message, tmp_path):
    """Processor time of a whole process: the start of Python is in it."""
    program = (
        "import sys, time\n"
        "from nnunet_ext.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(time.process_time())\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert float(done.stdout.split()[-1]) < 1


@pytest.mark.skipif(os.name == "nt", reason="Windows tells of it otherwise")
def test_a_reader_that_has_gone_ends_the_command_silently():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nnunet_ext", "trainers", "--list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_elsewhere_is_told(monkeypatch, capsys):
    def lose_worker(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(command.trainers, "run", lose_worker)
    assert main(["trainers"]) == 2
    assert "Broken pipe" in capsys.readouterr().err
