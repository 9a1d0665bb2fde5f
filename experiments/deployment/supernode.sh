#!/usr/bin/env bash
# A SuperNode and its ClientApp processes on this machine, in the foreground; Ctrl-C or SIGTERM stops all of them.
#
#   bash supernode.sh SUPERLINK PARTITION PARTITIONS KEYS [PORT]
#
# SUPERLINK is the host and port of the SuperLink. The node holds part PARTITION of PARTITIONS, counted from 0. KEYS is a
# folder with ca.crt and node-PARTITION, the node's private key. PORT is for the processes of this machine alone
# (default 9094).
#
# WARM=0 leaves starting ClientApp processes to Flower: one new process per message instead of a fork of one that has
# PyTorch loaded. PYTHON has fedpfn installed. What Flower keeps lies in FLWR_HOME (default KEYS/home-PARTITION).
set -euo pipefail

superlink=$1 partition=$2 partitions=$3 keys=$4 port=${5:-9094}
python=${PYTHON:-python3}
PATH=$(dirname "$("$python" -c "import sys; print(sys.executable)")"):$PATH
export FLWR_HOME=${FLWR_HOME:-$keys/home-$partition}
mkdir -p "$FLWR_HOME"
# what the app needs is installed: Flower need not install it anew for every message
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
# how often to look whether a message has come that needs a process; 1 second by default
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=${FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.1}

pids=()
stop() {
    trap - EXIT
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    wait
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

isolation=process
if [[ ${WARM:-1} == 0 ]]; then isolation=subprocess; fi
flower-supernode --superlink "$superlink" --root-certificates "$keys/ca.crt" \
    --auth-supernode-private-key "$keys/node-$partition" \
    --node-config "partition-id=$partition num-partitions=$partitions" \
    --host 127.0.0.1 --port "$port" --isolation "$isolation" &
pids+=($!)
if [[ $isolation == process ]]; then
    "$python" -m experiments.deployment.executor "127.0.0.1:$port" &
    pids+=($!)
fi
# whichever ends first takes the other along
wait -n "${pids[@]}"
