"""A cross-validation as jobs of Slurm, submitted and requeued by submitit.

Trainings are job arrays over folds. A job that reaches its time limit is requeued under its own number and resumes, so
that jobs that depend on it (`afterok`) keep waiting.

This module and `task.py` add what submitit lacks. It needs a time limit for every job: jobs without one get the
partition's. It does not search the queue for jobs of an earlier call. It does not withdraw the first jobs of a call
when Slurm refuses a later one.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from nnunet_ext.crossval.claims import check_unclaimed
from nnunet_ext.crossval.cluster.jobs import Job, JobOptions, job_name, make_jobs, parse_time
from nnunet_ext.crossval.cluster.task import Task
from nnunet_ext.crossval.description import dry_run, dry_run_text
from nnunet_ext.crossval.experiment import Experiment, child_environment
from nnunet_ext.crossval.graph import Graph

_SIGNAL = "USR1"
_EXPORTED = ("nnUNet", "NNUNET_EXT_")
_MANY = 10**6  # requeues: a job ends for lack of progress, not by their number
_ENDLESS_MINUTES = 365 * 24 * 60


@dataclass(frozen=True)
class SlurmExecutor:
    """Submits jobs.

    Attributes:
        options: Settings of the jobs.
        wait: Whether a job waits for another run that is working on the same step.
    """

    options: JobOptions
    wait: bool = False

    def describe(self, experiment: Experiment, graph: Graph) -> dict[str, Any]:
        """A dry run, with the jobs and what each asks of Slurm."""
        jobs = [
            {
                "name": job_name(experiment, job),
                "steps": list(job.steps),
                "after": [job_name(experiment, other) for other in _needed(job, make_jobs(graph))],
                "options": self._parameters(experiment, job, self.options.time)["additional_parameters"],
            }
            for job in make_jobs(graph)
        ]
        return dry_run(experiment, graph) | {"jobs": jobs}

    def run(self, experiment: Experiment, graph: Graph) -> int:
        """Submits the missing steps.

        Raises:
            FileNotFoundError: if Slurm is not installed on this machine.
            ValueError: while jobs of this cross-validation are queued, or another run is working on it.
        """
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise FileNotFoundError(f"{command} was not found; run this on a machine of the cluster")
        missing = graph.missing(graph.states())
        jobs = make_jobs(graph, missing)
        if not jobs:
            print("All steps are finished.")
            return 0
        _check_queue(experiment, [job_name(experiment, job) for job in jobs])
        check_unclaimed([] if self.wait else missing)
        limit = self.options.time or _default_limit(self.options)
        return self._submit(experiment, jobs, limit)

    def _submit(self, experiment: Experiment, jobs: list[Job], limit: str) -> int:
        executor = _executor(experiment)
        numbers: dict[str, str] = {}
        try:
            for job in jobs:
                parameters = self._parameters(experiment, job, limit)
                needed = [numbers[need] for need in job.needs]
                dependency = "afterok:" + ":".join(needed) if needed else None
                executor.update_parameters(**parameters, dependency=dependency)
                tasks = [Task(experiment, step, self.options.warning_seconds, self.wait) for step in job.steps]
                submitted = executor.submit_array(tasks)
                numbers[job.name] = submitted[0].job_id.split("_")[0]
                print(f"{numbers[job.name]} {job.name}", flush=True)
        # submitit raises its own error, of which no class is public, for a refused job.
        except Exception as error:
            if numbers:
                subprocess.run(["scancel", *numbers.values()], check=False)
            print(f"Slurm refused {job.name}; the jobs before it are withdrawn.\n{error}", file=sys.stderr)
            return 1
        print(f"Logs: {experiment.bookkeeping / 'slurm'}; for the progress, run the same command with --status")
        return 0

    def _parameters(self, experiment: Experiment, job: Job, limit: str | None) -> dict[str, Any]:
        """submitit's parameters of a job."""
        cpus = self.options.number_of_cpus()
        further: dict[str, str | bool] = {"requeue": True, "kill-on-invalid-dep": "yes"}
        if limit is not None:
            further["time"] = limit
        if job.on_gpu and experiment.device == "cuda":
            further["gres"] = f"gpu:{experiment.num_gpus if job.trains else 1}"
        if self.options.partition is not None:
            further["partition"] = self.options.partition
        further |= self.options.sbatch_options(job)
        further["comment"] = f"{further.get('comment', '')} {experiment.bookkeeping}".strip()  # see _check_queue
        return {
            "job_name": job_name(experiment, job),
            "time": max(1, parse_time(limit) // 60) if limit is not None else _ENDLESS_MINUTES,
            "cpus_per_task": cpus,
            "srun_args": [f"--cpus-per-task={cpus}"],  # since Slurm 22.05 srun does not take it from the job
            "signal_delay_s": self.options.warning_seconds,
            "stderr_to_stdout": True,
            "wckey": None,
            "setup": _setup(experiment, self.options),
            "additional_parameters": further,
        }


def slurm_text(content: dict[str, Any]) -> str:
    """The lines that `--slurm --dry-run` prints."""
    lines = [dry_run_text(content), "", "Jobs:"]
    for job in content["jobs"]:
        after = f"  after {', '.join(job['after'])}" if job["after"] else ""
        lines.append(f"\n{job['name']}: {', '.join(job['steps'])}{after}")
        given = (f"--{name}" if value is True else f"--{name}={value}" for name, value in job["options"].items())
        lines.append(f"            sbatch {shlex.join(given)}")
    return "\n".join(lines)


def _needed(job: Job, jobs: list[Job]) -> list[Job]:
    return [other for other in jobs if other.name in job.needs]


def _executor(experiment: Experiment) -> Any:
    """submitit's executor, with the signal that trainers listen to; submitit reads it when it is imported."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = _SIGNAL
    import submitit

    return submitit.SlurmExecutor(folder=experiment.bookkeeping / "slurm", max_num_timeout=_MANY)


def _setup(experiment: Experiment, options: JobOptions) -> list[str]:
    """Shell lines that precede the command of a job."""
    exported = {name: value for name, value in child_environment().items() if name.startswith(_EXPORTED)}
    for name, folder in (
        ("nnUNet_raw", experiment.raw),
        ("nnUNet_preprocessed", experiment.preprocessed),
        ("nnUNet_results", experiment.results),
    ):
        exported[name] = str(folder.parent)  # the variable may be a relative path
    exported["SUBMITIT_PREEMPT_SIGNAL"] = _SIGNAL
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(exported.items())]
    return ["set -eo pipefail", *lines, *options.preamble.splitlines()]


def _check_queue(experiment: Experiment, names: list[str]) -> None:
    """Raises ValueError for queued jobs of this cross-validation, whoever submitted them.

    Names do not tell experiments in different folders apart; the end of a job's comment does.
    """
    command = ["squeue", "--noheader", f"--name={','.join(names)}", "--format=%i|%u|%k"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    queued = [line.split("|", 2) for line in lines if line.endswith(str(experiment.bookkeeping))]
    if queued:
        jobs = ", ".join(f"{number} of {user}" for number, user, _ in queued)
        raise ValueError(
            f"jobs of this cross-validation are still in the queue: {jobs}; wait for them, or scancel them"
        )


def _default_limit(options: JobOptions) -> str:
    """The time limit of the jobs' partition: its default, else its maximum.

    Raises:
        ValueError: for a partition that Slurm does not know, or whose limit is shorter than the warning.
    """
    which = [] if options.partition is None else [f"--partition={options.partition}"]
    command = ["sinfo", "--noheader", *which, "--format=%P|%L|%l"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found = [line.split("|") for line in lines if options.partition is not None or "*" in line]
    if not found:
        raise ValueError(f"Slurm has no partition {options.partition or 'by default'}; name one with --partition")
    _, default, longest = found[0]
    limit = next((time for time in (default, longest) if time[0].isdigit()), None)
    if limit is None:
        return f"{_ENDLESS_MINUTES // 24 // 60}-0"
    if parse_time(limit) <= options.warning_seconds:
        raise ValueError(
            f"the partition's limit {limit} must be longer than the {options.warning_seconds} s of --warn-before; give "
            "a smaller --warn-before or a longer --time"
        )
    return limit
