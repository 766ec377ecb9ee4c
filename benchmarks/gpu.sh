#!/usr/bin/env bash
# What a GPU makes of training and search, in at most 15 minutes: one script for whoever has one.
#
#   benchmarks/gpu.sh OUT_FOLDER            in the project's root; PYTHON=python3 names another interpreter
#   PART_SECONDS=60 benchmarks/gpu.sh OUT   another limit for each of the nine parts
#
# Each part is killed at its limit and writes to files of its own, not into a pipe that workers could keep open.
set -u
out=${1:?usage: benchmarks/gpu.sh OUT_FOLDER}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
limit=${PART_SECONDS:-95}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} KINETO_LOG_LEVEL=99

part() {
  local name=$1 start=$SECONDS
  shift
  timeout -s KILL "$limit" "$python" "$@" > "$out/$name.txt" 2> "$out/$name.err" < /dev/null
  local code=$?
  echo "$name: exit code $code after $((SECONDS - start)) s"
}

rates() { # name, then what tells train.py which run
  local name=$1
  shift
  part "rates_$name" benchmarks/train.py "$@" --seconds "$((limit / 6))" --json "$out/rates_$name.json"
}

nvidia-smi > "$out/gpu.txt" 2>&1
rates paper --preset paper --suite hb-medium
rates laptop --preset laptop --suite hb-medium
rates h1_laptop --spec experiments/h1_laptop.yaml
for roots in 9 256 1024; do
  part "search_$roots" benchmarks/search.py --preset paper --roots "$roots" --seconds "$((limit / 8))" \
    --json "$out/search_$roots.json"
done
part curve_eager benchmarks/curve.py --eager --seconds "$((limit / 2))" --out "$out/curve_eager.json"
part curve_graph benchmarks/curve.py --seconds "$((limit / 2))" --out "$out/curve_graph.json"
part curves benchmarks/curve.py --compare "$out/curve_eager.json" "$out/curve_graph.json"
