"""A graph as jobs of a cluster: what the scripts for Slurm and for LSF have in common."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.crossval.experiment import Experiment, child_environment
from nnunet_ext.crossval.graph import Graph

_DEFAULT_CPUS = 12  # nnU-Net's default number of workers for data augmentation
_EXPORTED = ("nnUNet", "NNUNET_EXT_")


@dataclass(frozen=True)
class JobOptions:
    """What a user says of the jobs.

    Attributes:
        partition: Slurm's partition, LSF's queue; None: the cluster's default.
        time: Limit of each job as Slurm writes it, for example 24:00:00; None: the cluster's default.
        warning_seconds: How long before the limit a training is asked for a checkpoint.
        cpus: CPUs of each job; None: nnU-Net's number of workers.
        options, gpu_options, cpu_options: Further options of all jobs, of those on a GPU, of the others.
        preamble: Shell lines that each job begins with.
    """

    partition: str | None = None
    time: str | None = None
    warning_seconds: int = 600
    cpus: int | None = None
    options: tuple[str, ...] = ()
    gpu_options: tuple[str, ...] = ()
    cpu_options: tuple[str, ...] = ()
    preamble: str = ""

    def __post_init__(self) -> None:
        if self.time is not None and parse_time(self.time) <= self.warning_seconds:
            raise ValueError(
                f"--time {self.time} must be longer than the {self.warning_seconds} s of --warn-before, at which "
                "trainings are asked for a checkpoint"
            )

    def number_of_cpus(self, environment: Mapping[str, str] = os.environ) -> int:
        return self.cpus or int(environment.get("nnUNet_n_proc_DA") or 0) or _DEFAULT_CPUS

    def of_job(self, job: "Job") -> tuple[str, ...]:
        return (*self.options, *(self.gpu_options if job.on_gpu else self.cpu_options))


@dataclass(frozen=True)
class Job:
    """A job, or an array of jobs.

    Attributes:
        name: Of a group of nodes.
        folds: Of an array of trainings; else empty.
        needs: Names of jobs that must end well before.
        on_gpu: Whether it computes on the device.
    """

    name: str
    folds: tuple[int, ...]
    needs: tuple[str, ...]
    on_gpu: bool


def make_jobs(graph: Graph) -> list[Job]:
    """Jobs for what is missing of a graph, in an order in which they can be submitted."""
    missing = graph.missing(graph.states())
    names = {node.name for node in missing}
    jobs = []
    for group in dict.fromkeys(node.group for node in missing):
        nodes = [node for node in missing if node.group == group]
        needed = [graph.nodes[need].group for node in nodes for need in node.needs if need in names]
        jobs.append(
            Job(
                group,
                tuple(node.fold for node in nodes if node.fold is not None),
                tuple(other for other in dict.fromkeys(needed) if other != group),
                nodes[0].on_gpu,
            )
        )
    return jobs


def job_name(experiment: Experiment, job: Job) -> str:
    return f"crossval-{experiment.dataset_id}-{experiment.configuration}-{job.name}"


def job_body(experiment: Experiment, job: Job, options: JobOptions, fold: str, cpus_variable: str) -> list[str]:
    """Lines of a job's script after its directives; it becomes the process that runs the part and gets the signals.

    Args:
        fold: Shell expression of an array's fold.
        cpus_variable: Variable with the number of CPUs that the job was given.
    """
    exported = {name: value for name, value in child_environment().items() if name.startswith(_EXPORTED)}
    for name, folder in (
        ("nnUNet_raw", experiment.raw),
        ("nnUNet_preprocessed", experiment.preprocessed),
        ("nnUNet_results", experiment.results),
    ):
        exported[name] = str(folder.parent)  # the variable may be a relative path
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(exported.items())]
    if "nnUNet_n_proc_DA" not in exported:
        lines.append(f'export nnUNet_n_proc_DA="${{{cpus_variable}:-{_DEFAULT_CPUS}}}"')
    command = [sys.executable, "-m", "nnunet_ext", "crossval", *experiment.arguments()]
    command += ["--warn-before", str(options.warning_seconds), "--only"]
    part = f'"{job.name}_{fold}"' if job.folds else shlex.quote(job.name)
    return ["set -eo pipefail", *lines, *options.preamble.splitlines(), f"exec {shlex.join(command)} {part}"]


def write_scripts(
    experiment: Experiment, graph: Graph, engine: str, header: str, script: Callable[[Job], list[str]]
) -> Path | None:
    """Writes a script for every missing job and `submit.sh`, which submits them; those of earlier calls are removed.

    Args:
        experiment: What the jobs are for.
        graph: Its graph.
        engine: Name of the folder.
        header: Beginning of submit.sh, with a shell function `submit NAME [NEEDED ...]`; NAMES in it are all jobs'.
        script: Lines of a job's script.

    Returns:
        The path of submit.sh; None if nothing is missing.
    """
    jobs = make_jobs(graph)
    if not jobs:
        print("All parts are finished.")
        return None
    folder = experiment.bookkeeping / engine
    folder.mkdir(parents=True, exist_ok=True)
    (experiment.bookkeeping / "logs").mkdir(exist_ok=True)
    for old in folder.glob("*.sh"):
        old.unlink()
    for job in jobs:
        (folder / f"{job.name}.sh").write_text("\n".join(script(job)) + "\n")
    submissions = [shlex.join(["submit", job.name, *job.needs]) for job in jobs]
    names = ",".join(job_name(experiment, job) for job in jobs)
    submit = folder / "submit.sh"
    submit.write_text("\n".join([header.replace("NAMES", shlex.quote(names)).strip(), *submissions]) + "\n")
    print(f"wrote {submit} and the jobs beside it; to submit: bash {shlex.quote(str(submit))}")
    return submit


def parse_time(text: str) -> int:
    """Seconds of a time as sbatch takes it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"--time {text}: must be like 90 (minutes), 24:00:00 or 2-12:00:00")
    days, *rest = (int(part) if part else 0 for part in match.groups())
    given = sum(part is not None for part in match.groups()[1:])
    if match.group(1) is not None or given == 3:
        hours, minutes, seconds = rest
    else:
        hours, minutes, seconds = 0, rest[0], rest[1]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
