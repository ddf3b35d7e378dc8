"""A cross-validation as scripts for LSF, written but not submitted.

A training that nears its run limit ends with a checkpoint and an exit code at which LSF runs it again (`-Q`).
"""

from nnunet_ext.crossval.cluster.jobs import Job, JobOptions, job_body, job_name, parse_time, write_scripts
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT

_SUBMIT = """
#!/bin/bash
# Submits the jobs of this folder; written by nnunet_ext crossval.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
declare -A job=()
cancel() { [ "${#job[@]}" -eq 0 ] || bkill "${job[@]}"; }
trap cancel ERR # if one is refused, those before it are withdrawn
submit() { # NAME [NEEDED ...]
  local name=$1 needs=""
  shift
  for need in "$@"; do needs+="${needs:+ && }done(${job[$need]})"; done
  job[$name]=$(bsub ${needs:+-w "$needs"} < "$name.sh" | sed -n 's/^Job <\\([0-9]*\\)>.*/\\1/p')
  echo "${job[$name]} $name"
}
"""


def write_lsf_scripts(experiment: Experiment, graph: Graph, options: JobOptions) -> int:
    """Writes the scripts of what is missing; the exit code."""
    write_scripts(experiment, graph, "lsf", _SUBMIT, lambda job: _script(experiment, job, options))
    return 0


def _script(experiment: Experiment, job: Job, options: JobOptions) -> list[str]:
    # An array's indices begin at 1.
    indices = f"[{','.join(str(fold + 1) for fold in job.folds)}]" if job.folds else ""
    log = experiment.bookkeeping / "logs" / ("%J_%I.txt" if job.folds else "%J.txt")
    directives = [f'-J "{job_name(experiment, job)}{indices}"', f'-o "{log}"', f"-n {options.number_of_cpus()}"]
    directives.append('-R "span[hosts=1]"')
    if options.partition is not None:
        directives.append(f"-q {options.partition}")
    if options.time is not None:
        directives.append(f"-W {-(-parse_time(options.time) // 60)}")
    if job.folds:
        directives += ["-r", f'-Q "{RESUMABLE_EXIT}"']
    if job.folds and options.time is not None:  # without a limit there is nothing to warn of
        directives.append(f"-wa USR1 -wt {-(-options.warning_seconds // 60)}")
    if job.on_gpu and experiment.device == "cuda":
        directives.append(f'-gpu "num={experiment.num_gpus if job.folds else 1}"')
    directives += options.of_job(job)
    return [
        "#!/bin/bash",
        *(f"#BSUB {directive}" for directive in directives),
        *job_body(experiment, job, options, "$((LSB_JOBINDEX - 1))", "LSB_DJOB_NUMPROC"),
    ]
