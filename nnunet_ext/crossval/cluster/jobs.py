"""A graph as cluster jobs, with their dependencies and the resources that they ask for."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph, Node

DEFAULT_CPUS = 12  # nnU-Net's default number of workers for data augmentation
DEFAULT_WARNING = 600


@dataclass(frozen=True)
class JobOptions:
    """User-configurable settings of the jobs.

    Attributes:
        partition: Slurm's partition; None: the cluster's default.
        time: Limit of each job as Slurm writes it, for example 24:00:00; None: the partition's default.
        warning_seconds: Seconds before the limit at which a step is asked for a checkpoint.
        cpus: CPUs of each job; None: nnU-Net's number of workers.
        options, gpu_options, cpu_options: Further options of sbatch for all jobs, for those on a GPU, for the others.
        preamble: Shell lines at the beginning of each job.
    """

    partition: str | None = None
    time: str | None = None
    warning_seconds: int = DEFAULT_WARNING
    cpus: int | None = None
    options: tuple[str, ...] = ()
    gpu_options: tuple[str, ...] = ()
    cpu_options: tuple[str, ...] = ()
    preamble: str = ""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"--cpus {self.cpus} must be at least 1")
        if self.time is not None and parse_time(self.time) <= self.warning_seconds:
            raise ValueError(
                f"--time {self.time} must be longer than the {self.warning_seconds} s of --warn-before, at which "
                "trainings are asked for a checkpoint"
            )
        for option in (*self.options, *self.gpu_options, *self.cpu_options):
            parse_option(option)

    def number_of_cpus(self, environment: Mapping[str, str] = os.environ) -> int:
        return self.cpus or int(environment.get("nnUNet_n_proc_DA") or 0) or DEFAULT_CPUS

    def sbatch_options(self, job: "Job") -> dict[str, str | bool]:
        """The user's further options of a job; where one is given several times, the last counts."""
        further = self.gpu_options if job.on_gpu else self.cpu_options
        return dict(parse_option(option) for option in (*self.options, *further))


@dataclass(frozen=True)
class Job:
    """A job, or an array of jobs.

    Attributes:
        name: Name of a group of steps.
        steps: Steps of an array, one per task; otherwise the group's name.
        needs: Names of jobs that must succeed first.
        on_gpu: Whether it computes on the device.
        trains: Whether it trains.
    """

    name: str
    steps: tuple[str, ...]
    needs: tuple[str, ...]
    on_gpu: bool
    trains: bool


def make_jobs(graph: Graph, missing: list[Node] | None = None) -> list[Job]:
    """Jobs for the missing steps of a graph, in an order in which they can be submitted."""
    missing = graph.missing(graph.states()) if missing is None else missing
    names = {node.name for node in missing}
    jobs = []
    for group in dict.fromkeys(node.group for node in missing):
        nodes = [node for node in missing if node.group == group]
        needed = [graph.nodes[need].group for node in nodes for need in node.needs if need in names]
        trains = nodes[0].fold is not None
        jobs.append(
            Job(
                group,
                tuple(node.name for node in nodes) if trains else (group,),
                tuple(other for other in dict.fromkeys(needed) if other != group),
                nodes[0].on_gpu,
                trains,
            )
        )
    return jobs


def job_name(experiment: Experiment, job: Job) -> str:
    return f"crossval-{experiment.dataset_id}-{experiment.configuration}-{job.name}"


def parse_option(text: str) -> tuple[str, str | bool]:
    """Name and value of an option of sbatch; True for one without a value.

    Raises:
        ValueError: for any other form than --account=me or --exclusive.
    """
    match = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", text)
    if match is None:
        raise ValueError(f"the option {text!r} of sbatch must be like --account=me or --exclusive, in its long form")
    return match[1], match[2] if match[2] is not None else True


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
