#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU: builds the operators with that machine's own Python, runs the CUDA tests,
# compute-sanitizer and all benchmarks, and writes everything into one file.
#
#   bench/gpu.sh [DIR]     DIR: where NAME-OF-THE-GPU.json goes and logs/ with what each stage printed (default bench/results,
#                          logs in build/gpu)
#
# Needs: python3 with torch for CUDA, torchvision, setuptools, pybind11 and pytest, nvcc, a C++ compiler. No network: a package that
# is missing may lie in a folder named by PYTHONPATH. Variables: PYTHON (python3), SECONDS_PER_ROW (0.3), MINUTES (8.5, the limit of
# the whole).
# Every stage has its own limit, and its failure does not stop the later ones. Exits with 1 if any failed, 2 if nothing can run.
set -uo pipefail
SECONDS=0
out=${1:-}
[ -n "$out" ] && { mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2; }
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
deadline=$(awk "BEGIN { print int(60 * ${MINUTES:-8.5}) }")
logs=${out:+$out/logs}
logs=${logs:-build/gpu}
out=${out:-bench/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -z "${CUDA_HOME:-}" ] && ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  export CUDA_HOME=/usr/local/cuda
fi

if ! command -v "$python" >/dev/null; then
  echo "gpu.sh: no $python: install Python 3.11 or newer, or set PYTHON to one that has torch" >&2
  exit 2
fi
capability=$("$python" bench/_gpu_report.py check) || exit 2

rm -rf "$logs" && mkdir -p "$logs/rows" "$logs/quick" || exit 2

note() { # NAME STATUS SECONDS REMARK
  printf '%s\t%s\t%s\t%s\n' "$@" >> "$logs/stages.tsv"
  printf '== %-24s %-8s %4s s  %s\n' "$@"
}

stage() { # NAME LIMIT COMMAND...
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS status last
  shift 2
  if [ "$left" -lt "$limit" ]; then limit=$left; fi
  if [ "$limit" -lt 5 ]; then note "$name" FAILED 0 "not run: no time was left"; return; fi
  timeout -k 5 "$limit" "$@" > "$logs/$name.log" 2>&1 < /dev/null
  status=$?
  case $status in
    0) note "$name" ok $((SECONDS - start)) "" ;;
    124 | 137) note "$name" FAILED $((SECONDS - start)) "stopped at its limit of $limit s" ;;
    *)
      last=$(tail -n 1 "$logs/$name.log" | tr '\t' ' ' | cut -c 1-160)
      note "$name" FAILED $((SECONDS - start)) "exit status $status: $last"
      ;;
  esac
}

echo "== $("$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)')"
stage build 150 env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$capability}" "$python" setup.py build_ext --inplace

# torch.compile keeps what it has compiled on disk, and compiling takes longer than timing: one quick run of every benchmark, beside
# the stages that time nothing, so that the runs below find it there.
mapfile -t benchmarks < <(grep -lE '^from _bench import' bench/bench_*.py)
left=$((deadline - SECONDS))
for file in "${benchmarks[@]}"; do
  [ "$left" -lt 5 ] && break # a limit of 0 would be none
  timeout -k 5 $((left < 200 ? left : 200)) "$python" "$file" --device cuda --quick --out "$logs/quick" \
    > "$logs/quick-$(basename "$file" .py).log" 2>&1 < /dev/null &
done

# Only files that hold such tests: what others import need not be installed here.
mapfile -t tests < <(grep -rlE --include='test_*.py' 'mark\.cuda' tests)
pytest=("$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors)
stage tests 120 "${pytest[@]}" -m cuda --junitxml="$logs/tests.xml" "${tests[@]}"

# Own memory for each tensor, else the allocator's blocks hide a read past the end. initcheck has to watch torch's kernels too:
# they write what ours read; the report counts only what it says of ours.
if sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null); then
  for tool in memcheck racecheck initcheck; do
    ours=(--kernel-name kns=fastnas)
    [ "$tool" = initcheck ] && ours=()
    stage "sanitizer-$tool" 110 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" "${ours[@]}" \
      --target-processes all --report-api-errors no --print-limit 5000 --log-file "$logs/$tool.txt" \
      "${pytest[@]}" -m sanitizer "${tests[@]}" &
  done
else
  note sanitizer skipped 0 "no compute-sanitizer in CUDA_HOME or on the PATH"
fi
wait

rest=${#benchmarks[@]}
for file in "${benchmarks[@]}"; do
  rest=$((rest - 1))
  name=$(basename "$file" .py)
  # Whatever is left, but 20 seconds are kept for each one that follows.
  stage "$name" $((deadline - SECONDS - 20 * rest)) \
    "$python" "$file" --device cuda --seconds "${SECONDS_PER_ROW:-0.3}" --out "$logs/rows"
done

"$python" bench/_gpu_report.py report "$logs" "$out"
