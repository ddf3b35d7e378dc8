#!/usr/bin/env bash
# Ends the jobs and daemons that start.sh began in FOLDER.
set -uo pipefail

folder=$1
export SLURM_CONF=$folder/slurm.conf PATH="$PATH:/usr/sbin:/sbin"
munge=$(cat "$folder/munge.path" 2> /dev/null)

[ ! -f "$folder/slurmctld.pid" ] || timeout 10 scancel --user=root || true
for _ in $(seq 20); do
  [ -n "$(timeout 5 squeue --noheader 2> /dev/null)" ] || break
  sleep 0.5
done
for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$munge/pid"; do
  [ -f "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" || continue
  for _ in $(seq 40); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.25
  done
done
[ -z "$munge" ] || rm -rf "$munge"
