#!/usr/bin/env bash
# All that only a GPU can tell, in one go, the most needed first: benchmarks/on_a_gpu.sh OUT [PYTHON]
#
# Needs one Hopper GPU on which nothing else runs, and the `test` extra. Each part has its own limit of
# time and its log under OUT; one that fails does not stop the next. Half an hour at most.
# What to commit then, and where: docs/development.md, "Kernels".
set -u
out=${1:?usage: benchmarks/on_a_gpu.sh OUT [PYTHON]}
python=${2:-python}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

part() { # part NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  echo "$name: exit $status, $((SECONDS - start)) s" | tee -a "$out/summary.txt"
  tail -n 12 "$out/$name.log"
}

run=("$python" -m parallax.experiments)
part right 480 "$python" -m pytest -m gpu -n 0 -s -q tests/kernels
part decode 240 "${run[@]}" bench_kernels --operations=decode_attention,cache_tiled_mlp --out="$out/decode"
part forward 300 "${run[@]}" bench_kernels --operations=ring_attention --out="$out/forward"
part backward 240 "${run[@]}" bench_kernels --operations=ring_attention_backward --out="$out/backward"
part l2_residency 240 "${run[@]}" l2_residency --out="$out/l2_residency"
part calibrate 300 "${run[@]}" calibrate --out="$out/rates"
cat "$out/summary.txt"
