"""Cross-validate trainers and compare them: plan, preprocess, train, pool and report, here or on a cluster."""

import argparse
from pathlib import Path

from nnunet_ext.utils.devices import DEVICES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name")
    parser.add_argument("-c", dest="configuration", required=True, metavar="CONFIGURATION", help="e.g. 3d_fullres")
    parser.add_argument("-tr", dest="trainers", nargs="+", required=True, metavar="TRAINER")
    parser.add_argument(
        "-p",
        dest="plans",
        nargs="+",
        default=["nnUNetPlans"],
        metavar="PLANS",
        help="one name for all trainers, or one for each (default: nnUNetPlans)",
    )
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("-o", dest="report", default="report", metavar="FOLDER", help="report (default: %(default)s)")
    parser.add_argument(
        "--baseline",
        metavar="TRAINER",
        help="what others are compared with (default: nnUNetTrainer if it is there, else the first)",
    )
    parser.add_argument("--ensemble", action="store_true", help="also ensemble the two best")
    parser.add_argument("--test", metavar="FOLDER", help="also predict the images of a folder, to REPORT/predictions")
    parser.add_argument("-np", dest="processes", type=int, metavar="N", help="processes that preprocess")
    parser.add_argument("--dry-run", action="store_true", help="print the parts, their states and commands, do nothing")
    local = parser.add_argument_group("on this machine")
    local.add_argument("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    local.add_argument(
        "--gpus",
        nargs="+",
        metavar="GPU",
        help="train on these at once (default: CUDA_VISIBLE_DEVICES, else the first)",
    )
    local.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs that train one fold together")
    cluster = parser.add_argument_group("on a cluster")
    cluster.add_argument("--slurm", action="store_true", help="submit jobs; with --dry-run only write their scripts")
    cluster.add_argument("--lsf", action="store_true", help="write scripts for LSF")
    cluster.add_argument("--partition", help="Slurm's partition or LSF's queue")
    cluster.add_argument("--time", help="limit of each job, e.g. 24:00:00; trainings go on in further jobs")
    cluster.add_argument(
        "--warn-before",
        type=int,
        default=600,
        metavar="SECONDS",
        help="before the limit, to end with a checkpoint: more than an epoch and a minute (default: %(default)s)",
    )
    cluster.add_argument("--cpus", type=int, metavar="N", help="CPUs of a job (default: nnUNet_n_proc_DA, or 12)")
    for name, which in (("job", "all jobs"), ("gpu-job", "jobs on a GPU"), ("cpu-job", "the other jobs")):
        cluster.add_argument(
            f"--{name}-option", action="append", default=[], metavar="OPTION", help=f"of sbatch or bsub, for {which}"
        )
    cluster.add_argument("--preamble", metavar="FILE", help="shell lines that each job begins with: module load ...")
    cluster.add_argument("--only", metavar="PART", help="run one part in the foreground, as the jobs do")
    parser.epilog = (
        "Run it again after an interruption: it goes on where it was. An option that begins with a dash needs an "
        "equals sign: --job-option=--account=me"
    )


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.crossval.experiment import make_experiment
    from nnunet_ext.crossval.steps import build_graph
    from nnunet_ext.utils.devices import choose_device

    in_jobs = arguments.slurm or arguments.lsf or arguments.only is not None
    given = arguments.device
    # Whoever submits jobs, or pools results, need not have the device.
    device = ("cuda" if given == "auto" else given) if in_jobs else choose_device(given)
    experiment = make_experiment(
        arguments.dataset,
        arguments.configuration,
        arguments.trainers,
        arguments.plans,
        arguments.folds,
        arguments.report,
        device,
        arguments.num_gpus,
        arguments.processes,
        arguments.baseline,
        arguments.ensemble,
        arguments.test,
    )
    graph = build_graph(experiment)
    if arguments.only is not None:
        from nnunet_ext.crossval.cluster.task import run_part

        return run_part(graph, experiment.bookkeeping, arguments.only, arguments.warn_before)
    if in_jobs:
        from nnunet_ext.crossval.cluster.jobs import JobOptions
        from nnunet_ext.crossval.cluster.lsf import write_lsf_scripts
        from nnunet_ext.crossval.cluster.slurm import run_on_slurm

        options = JobOptions(
            arguments.partition,
            arguments.time,
            arguments.warn_before,
            arguments.cpus,
            tuple(arguments.job_option),
            tuple(arguments.gpu_job_option),
            tuple(arguments.cpu_job_option),
            Path(arguments.preamble).read_text() if arguments.preamble else "",
        )
        if arguments.lsf:
            return write_lsf_scripts(experiment, graph, options)
        return run_on_slurm(experiment, graph, options, arguments.dry_run)
    from nnunet_ext.crossval.local import describe, make_slots, run_local

    slots = make_slots(device, arguments.gpus, arguments.num_gpus)
    if arguments.dry_run:
        print(describe(experiment, graph))
        return 0
    return run_local(experiment, graph, slots)
