#!/usr/bin/env bash
# Plan, train with two processes, resume with one: the flow of a cluster on one laptop's CPU.
#
# Needs: Parallax installed (pip install -e .), two cores, no GPU. About two minutes.
# Change: nothing. PORT=... if 12345 is taken, WORKDIR=... for another folder of the run.
# Start: examples/two_shells.sh
# By hand, in two shells: the command that `train` runs below, with --process_id=0 in one and
#   --process_id=1 in the other. On two machines, replace localhost by the name of the first one,
#   which the second has to reach, and leave out --virtual and --small.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${PORT:-12345}
workdir=${WORKDIR:-runs/two_shells}
plan=${PLAN:-$workdir.plan}
steps=${STEPS:-10}

# Each of the two processes has half of the mesh's eight devices.
train() {
  parallax train --distributed --coordinator="localhost:$port" --num_processes=2 --process_id="$1" \
    --virtual --model=ring_sp --small --data="$root/README.md" --workdir="$workdir" \
    --strategy="$plan/strategy.json" --batch=16 --seq_len=64 --steps="$steps"
}

echo "== which strategy: a plan for eight GPUs"
if [[ ! -e $plan/strategy.json ]]; then
  parallax plan --phase=train --model=ring_sp --batch=64 --seq_len=8192 --cluster=h100_1x8 \
    --compile_top=0 --out="$plan"
fi

echo "== two processes, to step $steps; process 1 prints to $workdir/logs/process-1.log"
train 1 &
second=$!
status=0
train 0 || status=$?
wait "$second" || status=$?
[[ $status == 0 ]] || exit "$status"

echo "== one process goes on to step $((2 * steps)), under another strategy"
parallax train --virtual --model=ring_sp --small --data="$root/README.md" --workdir="$workdir" \
  --strategy=tensor_pipeline --mesh=stage=2,tensor=4 --batch=16 --seq_len=64 --steps="$((2 * steps))"
