"""A cross-validation as jobs of Slurm.

Trainings are array jobs over folds. A training that reaches its time limit requeues itself: it keeps its number, so
that what depends on it (`afterok`) goes on waiting, and goes on from its checkpoint.
"""

import shutil
import subprocess

from nnunet_ext.crossval.cluster.jobs import Job, JobOptions, job_body, job_name, write_scripts
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph

_SUBMIT = """
#!/bin/bash
# Submits the jobs of this folder; written by nnunet_ext crossval.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
queued=$(squeue --noheader --user="$(id -un)" --name=NAMES --format=%i | tr '\\n' ' ')
if [ -n "$queued" ]; then
  echo "jobs of this cross-validation are still in the queue: ${queued}; wait for them, or scancel them" >&2
  exit 1
fi
declare -A job=()
cancel() { [ "${#job[@]}" -eq 0 ] || scancel "${job[@]}"; }
trap cancel ERR # if one is refused, those before it are withdrawn
submit() { # NAME [NEEDED ...]
  local name=$1 needs="" number
  shift
  for need in "$@"; do needs+=:${job[$need]}; done
  number=$(sbatch --parsable ${needs:+--dependency="afterok$needs"} "$name.sh")
  job[$name]=${number%%;*}
  echo "${job[$name]} $name"
}
"""


def run_on_slurm(experiment: Experiment, graph: Graph, options: JobOptions, dry_run: bool) -> int:
    """Writes the scripts of what is missing and, unless it is a dry run, submits them; the exit code.

    Raises:
        FileNotFoundError: if there is no Slurm here.
    """
    submit = write_scripts(experiment, graph, "slurm", _SUBMIT, lambda job: _script(experiment, job, options))
    if submit is None or dry_run:
        return 0
    if shutil.which("sbatch") is None:
        raise FileNotFoundError(f"there is no sbatch here; on a machine of the cluster: bash {submit}")
    return subprocess.run(["bash", str(submit)], check=False).returncode


def _script(experiment: Experiment, job: Job, options: JobOptions) -> list[str]:
    log = experiment.bookkeeping / "logs" / ("%x_%A_%a.txt" if job.folds else "%x_%j.txt")
    directives = [
        f"--job-name={job_name(experiment, job)}",
        f'--output="{log}"',
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",
        f"--cpus-per-task={options.number_of_cpus()}",
    ]
    if options.partition is not None:
        directives.append(f"--partition={options.partition}")
    if options.time is not None:
        directives.append(f"--time={options.time}")
    if job.folds:
        directives.append(f"--array={','.join(map(str, job.folds))}")
        directives += ["--requeue", f"--signal=B:USR1@{options.warning_seconds}"]
    if job.on_gpu and experiment.device == "cuda":
        directives.append(f"--gres=gpu:{experiment.num_gpus if job.folds else 1}")
    directives += options.of_job(job)
    return [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in directives),
        *job_body(experiment, job, options, "$SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK"),
    ]
