#!/usr/bin/env bash
# A whole deployment on this machine: a SuperLink, SuperNodes in processes of their own, one run, and everything stopped.
#
#   bash localhost.sh FOLDER NODES ["KEY=VALUE ..."]
#
# The settings are those of `flwr run --run-config`: text values in quotes, as in "rounds=3 strategy.name='fedavg'".
# The run folder is FOLDER/run unless they name another output.dir; logs, certificates and keys lie in FOLDER as well.
# The exit status is 0 where the run completed. Read it as a recipe: on several machines each block belongs to one.
#
# PORT is the SuperLink's (default 9300); the SuperNodes take the next ones. PYTHON has fedpfn installed, APP is the
# folder of the app (default: the one that this script is in). WARM=0 is passed on to supernode.sh. COUNT=1 counts the
# bytes between SuperNodes and SuperLink, in FOLDER/traffic.json.
set -euo pipefail

folder=$1 nodes=$2 settings=${3:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
app=${APP:-$(dirname "$(dirname "$here")")}
port=${PORT:-9300}
export PYTHON=${PYTHON:-python3}
PATH=$(dirname "$("$PYTHON" -c "import sys; print(sys.executable)")"):$PATH

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
keys=$folder/keys
[[ $settings == *output.dir=* ]] || settings+=" output.dir='$folder/run'"
# what the app needs is installed: Flower need not install it anew for every run
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=${FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.1}

pids=()
descendants() {
    local child
    for child in $(pgrep -P "$1" || true); do echo "$child"; descendants "$child"; done
}
stop() {
    trap - EXIT
    local family
    family=$(for pid in "${pids[@]}"; do descendants "$pid"; done)
    # the nodes first, which say goodbye to the SuperLink
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2> /dev/null || true; done
    wait
    # a ServerApp that was cut off from its SuperLink would look for it for ever
    for pid in $family; do kill -KILL "$pid" 2> /dev/null || true; done
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

await() { # PORT PID LOG: wait until a process listens
    until (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; do
        kill -0 "$2" 2> /dev/null || { echo "$3 says why it ended:" >&2; tail -n 5 "$3" >&2; exit 1; }
        sleep 0.2
    done
}

# ---- on the machine of the SuperLink: certificates and keys, once
bash "$here/certificates.sh" "$keys" "$nodes"

# ---- on the machine of the SuperLink; the run folder is made there
export FLWR_HOME=$folder/superlink
mkdir -p "$FLWR_HOME"
cd "$folder"
flower-superlink --host 127.0.0.1 --port "$port" --enable-supernode-auth --database "$FLWR_HOME/state.db" \
    --ssl-ca-certfile "$keys/ca.crt" --ssl-certfile "$keys/server.pem" --ssl-keyfile "$keys/server.key" \
    > "$folder/superlink.log" 2>&1 &
pids+=($!)
await "$port" $! "$folder/superlink.log"

link=$port
if [[ -n ${COUNT:-} ]]; then
    link=$((port + 1 + nodes))
    "$PYTHON" -m experiments.deployment.traffic "$link" "127.0.0.1:$port" "$folder/traffic.json" &
    pids+=($!)
    await "$link" $! "$folder/superlink.log"
fi

# ---- where you type: how `flwr` reaches the SuperLink, and which SuperNodes may join
export FLWR_HOME=$folder/home
mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" << END
[superlink]
default = "deployment"

[superlink.deployment]
address = "127.0.0.1:$port"
root-certificates = "$keys/ca.crt"
END
for ((node = 0; node < nodes; node++)); do
    flwr supernode register "$keys/node-$node.pub" deployment > "$folder/register.log" 2>&1 \
        || grep -q "already in use" "$folder/register.log" || { cat "$folder/register.log" >&2; exit 1; }
done

# ---- on the machine of each SuperNode
for ((node = 0; node < nodes; node++)); do
    FLWR_HOME=$folder/node-$node bash "$here/supernode.sh" "127.0.0.1:$link" "$node" "$nodes" "$keys" \
        "$((port + 1 + node))" > "$folder/node-$node.log" 2>&1 &
    pids+=($!)
    echo $! > "$folder/node-$node.pid"
done

# ---- where you type
flwr run "$app" deployment --run-config "$settings" --stream 2>&1 | tee "$folder/run.log"
run=$(grep -oE "run [0-9]{6,}" "$folder/run.log" | head -n 1 | grep -oE "[0-9]+")
status=$(flwr list deployment --run-id "$run" --format json | "$PYTHON" -c \
    "import json, sys; print(json.load(sys.stdin)['runs'][0]['status'])")
echo "run $run: $status"
[[ $status == finished:completed ]]
