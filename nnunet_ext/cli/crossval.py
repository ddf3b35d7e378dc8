"""Cross-validate trainers and compare them: plan, preprocess, train, pool and report, here or on a cluster."""

import argparse
import json
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.nnunet.trainers import check_trainers_exist
from nnunet_ext.utils.devices import DEVICES

if TYPE_CHECKING:
    from nnunet_ext.crossval.executor import Executor
    from nnunet_ext.crossval.experiment import Experiment
    from nnunet_ext.crossval.graph import Graph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", required=True, metavar="DATASET", help="number or name")
    parser.add_argument("-c", "--configuration", required=True, help="e.g. 3d_fullres")
    parser.add_argument("-tr", "--trainers", nargs="+", required=True, metavar="TRAINER")
    parser.add_argument(
        "-p",
        "--plans",
        nargs="+",
        default=["nnUNetPlans"],
        metavar="PLANS",
        help="one name for all trainers, or one for each (default: nnUNetPlans)",
    )
    parser.add_argument("-f", "--folds", nargs="+", type=int, help="default: all of the dataset's split")
    parser.add_argument("--repeats", type=int, default=1, metavar="R", help="trainings of each fold (default: 1)")
    parser.add_argument(
        "--groups",
        metavar="SOURCE",
        help="CSV table case,group, or regular expression of case names: no fold divides a group, e.g. a patient",
    )
    parser.add_argument(
        "-o", "--output", dest="report", default="report", metavar="FOLDER", help="report (default: %(default)s)"
    )
    parser.add_argument("--ensemble", action="store_true", help="also ensemble the two best trainers")
    parser.add_argument("--test", metavar="FOLDER", help="also predict the images of a folder, to REPORT/predictions")
    parser.add_argument("-np", dest="processes", type=int, metavar="N", help="processes that preprocess")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="to plan our trainers for (default: 24)")
    parser.add_argument("--plan", action="store_true", help="make a plan under a name that is no trainer's default")
    report = parser.add_argument_group("report", "passed on to `nnunet_ext compare`")
    report.add_argument(
        "--baseline",
        metavar="TRAINER",
        help="trainer that others are compared with (default: nnUNetTrainer if it is named, else the first)",
    )
    report.add_argument("--margin", type=float, metavar="DICE", help="Dice points that do not matter (default: 0.5)")
    report.add_argument("--tolerance", type=float, metavar="MM", help="of the surface Dice, in mm (default: 2)")
    report.add_argument(
        "--untimed", action="store_true", help="leave out seconds; automatic where trainings shared or changed machines"
    )
    look = parser.add_argument_group("look only")
    look.add_argument("--dry-run", action="store_true", help="print the steps, their states and commands, do nothing")
    look.add_argument("--status", action="store_true", help="print the progress of an experiment")
    look.add_argument("--json", action="store_true", help="with --dry-run or --status: print JSON")
    parser.add_argument("--wait", action="store_true", help="wait for another run that is working on the same steps")
    local = parser.add_argument_group("on this machine")
    local.add_argument("-device", "--device", choices=DEVICES, default="auto", help="default: %(default)s")
    local.add_argument(
        "--gpus",
        nargs="+",
        metavar="GPU",
        help="train on these at once, counted as CUDA_VISIBLE_DEVICES lists them (default: all listed, else the first)",
    )
    local.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs that train one fold together")
    cluster = parser.add_argument_group("on a cluster")
    cluster.add_argument("--slurm", action="store_true", help="submit jobs to Slurm; needs `nnunet_ext[slurm]`")
    cluster.add_argument("--partition", help="default: the cluster's")
    cluster.add_argument("--time", help="limit of each job, e.g. 24:00:00; longer steps are requeued and resume")
    cluster.add_argument(
        "--warn-before",
        type=int,
        metavar="SECONDS",
        help="time before the limit to end with a checkpoint: more than an epoch and a minute (default: 600)",
    )
    cluster.add_argument("--cpus", type=int, metavar="N", help="CPUs of a job (default: nnUNet_n_proc_DA, or 12)")
    for name, which in (("job", "all jobs"), ("gpu-job", "jobs on a GPU"), ("cpu-job", "the other jobs")):
        cluster.add_argument(f"--{name}-option", action="append", metavar="OPTION", help=f"of sbatch, for {which}")
    cluster.add_argument("--preamble", metavar="FILE", help="shell lines at the beginning of each job: module load ...")
    cluster.add_argument("--only", metavar="STEP", help="run one step in the foreground, for another scheduler's jobs")
    parser.epilog = (
        "Run it again after an interruption: it resumes where it stopped. An option that begins with a dash needs an "
        "equals sign: --job-option=--account=me"
    )


_OF_SLURM = ("partition", "time", "cpus", "job_option", "gpu_job_option", "cpu_job_option", "preamble")


def run(arguments: argparse.Namespace) -> int:
    _check_modes(arguments)
    check_trainers_exist(arguments.trainers)
    from nnunet_ext.crossval.experiment import make_experiment
    from nnunet_ext.crossval.steps import build_graph
    from nnunet_ext.utils.devices import choose_device

    given = arguments.device
    # Submitting jobs, pooling results and showing states do not need the device.
    elsewhere = arguments.slurm or arguments.status or arguments.only is not None
    device = ("cuda" if given == "auto" else given) if elsewhere else choose_device(given)
    executor = _executor(arguments, device)
    experiment = make_experiment(
        arguments.dataset,
        arguments.configuration,
        arguments.trainers,
        plans=arguments.plans,
        folds=arguments.folds,
        report=arguments.report,
        test=arguments.test,
        device=device,
        num_gpus=arguments.num_gpus,
        processes=arguments.processes,
        baseline=arguments.baseline,
        ensemble=arguments.ensemble,
        repeats=arguments.repeats,
        groups=arguments.groups,
        margin=arguments.margin,
        tolerance=arguments.tolerance,
        untimed=arguments.untimed,
        gpu_memory=arguments.gpu_memory,
        plan=arguments.plan,
    )
    graph = build_graph(experiment)
    if arguments.status or arguments.dry_run:
        _look(arguments, executor, experiment, graph)
        return 0
    if arguments.only is not None:
        from nnunet_ext.crossval.cluster.jobs import DEFAULT_WARNING
        from nnunet_ext.crossval.cluster.task import run_steps

        warning = DEFAULT_WARNING if arguments.warn_before is None else arguments.warn_before
        return run_steps(graph, experiment.bookkeeping, arguments.only, warning, wait=arguments.wait).value
    return executor.run(experiment, graph)


def _look(arguments: argparse.Namespace, executor: "Executor", experiment: "Experiment", graph: "Graph") -> None:
    from nnunet_ext.crossval.cluster.slurm import slurm_text
    from nnunet_ext.crossval.description import dry_run_text, status, status_text

    if arguments.status:
        content, text = status(experiment, graph), status_text
    else:
        content, text = executor.describe(experiment, graph), slurm_text if arguments.slurm else dry_run_text
    print(json.dumps(content, indent=2) if arguments.json else text(content))


def _executor(arguments: argparse.Namespace, device: str) -> "Executor":
    if arguments.slurm:
        from nnunet_ext.crossval.cluster.jobs import DEFAULT_WARNING, JobOptions
        from nnunet_ext.crossval.cluster.slurm import SlurmExecutor

        options = JobOptions(
            partition=arguments.partition,
            time=arguments.time,
            warning_seconds=DEFAULT_WARNING if arguments.warn_before is None else arguments.warn_before,
            cpus=arguments.cpus,
            options=tuple(arguments.job_option or ()),
            gpu_options=tuple(arguments.gpu_job_option or ()),
            cpu_options=tuple(arguments.cpu_job_option or ()),
            preamble=Path(arguments.preamble).read_text() if arguments.preamble else "",
        )
        return SlurmExecutor(options, arguments.wait)
    from nnunet_ext.crossval.gpus import make_slots
    from nnunet_ext.crossval.local import LocalExecutor

    available = None
    if arguments.gpus is not None:
        import torch

        available = torch.cuda.device_count() if torch.cuda.is_available() else None
    return LocalExecutor(make_slots(device, arguments.gpus, arguments.num_gpus, available=available), arguments.wait)


def _check_modes(arguments: argparse.Namespace) -> None:
    """Refuses options that the mode of this call would ignore."""
    modes = [f"--{name}" for name in ("status", "only", "dry_run") if getattr(arguments, name)]
    modes = [mode.replace("_", "-") for mode in modes]
    if len(modes) > 1:
        raise ValueError(f"{' and '.join(modes)} exclude each other; give one of them")
    if arguments.only is not None and arguments.slurm:
        raise ValueError("--only runs a step here and --slurm submits jobs; give one of them")
    if arguments.json and not (arguments.dry_run or arguments.status):
        raise ValueError("--json belongs to --dry-run or --status; add one of them")
    if arguments.wait and (arguments.dry_run or arguments.status):
        raise ValueError(f"--wait has nothing to wait for with {modes[0]}; leave it out")
    for name in _OF_SLURM:
        if getattr(arguments, name) is not None and not arguments.slurm:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} belongs to --slurm, without which this machine would train; add --slurm")
    if arguments.warn_before is not None:
        if not arguments.slurm and arguments.only is None:
            raise ValueError("--warn-before belongs to --slurm or --only; add one of them")
        if arguments.warn_before < 1:
            raise ValueError(f"--warn-before {arguments.warn_before} must be at least 1 second")
    if arguments.gpus is not None and (arguments.slurm or arguments.only is not None):
        raise ValueError(
            "--gpus chooses GPUs of this machine, but a job's are chosen by the cluster; leave it out, or give "
            "--num-gpus N to train each fold on N"
        )
    if arguments.slurm and not arguments.dry_run and util.find_spec("submitit") is None:
        raise ValueError("--slurm needs submitit, which is not installed: pip install 'nnunet_ext[slurm]'")
