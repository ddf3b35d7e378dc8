#!/usr/bin/env bash
# Starts a Slurm of two nodes on this machine's loopback: munged, slurmctld and a slurmd for each node, all their state
# in FOLDER. A job in the partition `urgent` preempts one in `low`, which has 20 seconds to end.
# Prints why on stderr and exits with 77 where it cannot.
#   tests/crossval/slurm/start.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf
set -euo pipefail

folder=$1
name=$(uname -n | cut -d. -f1)

impossible() { echo "no Slurm here: $*" >&2; exit 77; }

missing() {
  local command
  for command in slurmctld slurmd sbatch munged; do
    command -v "$command" > /dev/null || echo "$command"
  done
}

export PATH="$PATH:/usr/sbin:/sbin"
[ "$(id -u)" -eq 0 ] || impossible "its daemons are started as root"
if [ -n "$(missing)" ]; then
  [ -n "${NNUNET_EXT_INSTALL_SLURM:-}" ] || impossible "not installed; apt-get install slurm-wlm munge" \
    "(or set NNUNET_EXT_INSTALL_SLURM=1 to let this script do it)"
  command -v apt-get > /dev/null || impossible "no apt-get to install it"
  {
    apt-get -o DPkg::Lock::Timeout=300 update &&
      DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends \
        slurm-wlm munge
  } > "$folder/install.log" 2>&1 || impossible "installing it failed: $(tail -n 1 "$folder/install.log")"
fi
id munge > /dev/null 2>&1 || impossible "there is no user munge"

# Of its own, so that a munged of this machine is left alone. Other users may pass through, as munged demands.
munge=$(mktemp -d /tmp/munge.XXXXXX)
echo "$munge" > "$folder/munge.path"
chmod 755 "$munge"
head -c 128 /dev/urandom > "$munge/key"
chmod 600 "$munge/key"
chown -R munge "$munge"
setpriv --reuid=munge --regid="$(id -g munge)" --clear-groups munged --socket="$munge/socket" --key-file="$munge/key" \
  --pid-file="$munge/pid" --log-file="$munge/log" --seed-file="$munge/seed" ||
  impossible "munged does not start: $(tail -n 1 "$munge/log")"

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

mkdir -p "$folder/state"
cat > "$folder/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=first NodeHostname=$name NodeAddr=127.0.0.1 Port=$(port) CPUs=1 State=UNKNOWN
NodeName=second NodeHostname=$name NodeAddr=127.0.0.1 Port=$(port) CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=low Nodes=first MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=urgent Nodes=first MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd -N first
slurmd -N second
for _ in $(seq 60); do
  [ "$(sinfo --noheader --partition=main --format=%D%t 2> /dev/null)" != 2idle ] || exit 0
  sleep 0.5
done
impossible "the node does not come up: $(tail -n 2 "$folder/slurmctld.log" "$folder"/slurmd.*.log)"
