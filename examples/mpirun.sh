#!/usr/bin/env bash
# Train on two nodes of eight GPUs with Open MPI's mpirun, one process per GPU.
#
# Needs: on every node, at the same path, the folder that this is started in, with Parallax for
#   GPUs installed (docs/cluster.md, "Install"), model/, data/, and plan/ made on a laptop:
#     parallax plan --phase=train --model=model --batch=64 --seq_len=8192 --cluster=h100_2x8 --out=plan
#   and `hosts`, a file with a line such as "node1 slots=8" for each node.
# Change: the flags of `parallax train` to what the plan printed; or give others, all of them, after
#   the name of this file. For one process per node: PROCESSES=2 PER_NODE=1.
# Start: examples/mpirun.sh
# Resume: the same again. On one node, under a plan for eight GPUs (--cluster=h100_1x8 --out=plan8):
#   PROCESSES=8 STRATEGY=plan8/strategy.json examples/mpirun.sh
# Stop: Ctrl-C, or SIGTERM to this script (not to mpirun).
# On a laptop, two processes of four virtual CPU devices (any text is data):
#   PROCESSES=2 PER_NODE=2 HOSTFILE= examples/mpirun.sh --virtual --model=ring_sp --small \
#     --data=README.md --workdir=runs/mpi --strategy=tensor_pipeline --mesh=stage=2,tensor=4 \
#     --batch=8 --seq_len=64 --steps=10
#
# JAX asks Open MPI 4 for the address of process 0, which has to be on the node of mpirun. Open MPI
# 5 does not tell it: then it is the first host of the file, port PORT.
set -euo pipefail

hostfile=${HOSTFILE-hosts}
version=$(mpirun --version | sed -n 's/.*Open MPI[)]* *v*\([0-9]*\)\..*/\1/p' | head -1)

options=(-np "${PROCESSES:-16}" --map-by "ppr:${PER_NODE:-8}:node:OVERSUBSCRIBE" --bind-to none)
[[ -z $hostfile ]] || options+=(--hostfile "$hostfile")
[[ $EUID != 0 ]] || options+=(--allow-run-as-root)
coordinator=()
if [[ ${version:-0} -ge 5 ]]; then
  first=localhost
  [[ -z $hostfile ]] || first=$(awk '!/^ *(#|$)/ { print $1; exit }' "$hostfile")
  coordinator+=(--coordinator="$first:${PORT:-12345}")
fi

flags=(
  --model=model --data=data/train.npy --workdir=runs/one
  --strategy="${STRATEGY:-plan/strategy.json}" --batch=64 --seq_len=8192 --remat=attention
  --steps=10000 --save_every=200
)
[[ $# == 0 ]] || flags=("$@")

# mpirun kills its processes a second after SIGTERM or Ctrl-C. Those of this node get the signal
# instead: then all processes save a checkpoint, at the same step, and leave with status 0.
set -m
mpirun "${options[@]}" -x PATH \
  parallax train --distributed "${coordinator[@]}" "${flags[@]}" </dev/null &
pid=$!
trap 'pkill -TERM -P "$pid"' TERM INT
status=0
wait "$pid" || status=$?
while kill -0 "$pid" 2>/dev/null; do
  status=0
  wait "$pid" || status=$?
done
exit "$status"
