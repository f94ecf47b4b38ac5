#!/usr/bin/env bash
# All that one machine with an NVIDIA GPU has to say about gpucnn, in under nine minutes.
#
#     benchmarks/run_gpu.sh [FOLDER]        where the answers go; by default benchmarks/results/gpu-DATE
#
# Needs a python3 with CuPy, NumPy, SciPy, safetensors, rich, typer, pytest and hypothesis; PyTorch is measured beside
# gpucnn where it is installed. gpucnn itself need not be. Where GPUCNN_DATA names a folder that holds CIFAR-10,
# networks are trained on that, otherwise on synthetic digits.
#
# Every step has its own time limit, and the others are made if it fails. The exit status is the number of those that
# did; the last lines say which, and so does summary.json.
set -u
unset CDPATH # with it cd would print

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) || exit 125
folder=${1:-$root/benchmarks/results/gpu-$(date +%Y-%m-%d)}
mkdir -p -- "$folder" && folder=$(cd -- "$folder" && pwd) || exit 125
cd -- "$root" || exit 125
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset CUPY_TF32 GPUCNN_TF32 GPUCNN_BACKEND GPUCNN_WORKSPACE_MB # from outside they would change what is measured

failed=0
entries=()

# step NAME SECONDS COMMAND…: its output goes to NAME.log
step() {
    local name=$1 limit=$2 started=$SECONDS status said
    shift 2
    timeout --kill-after=3 "$limit" "$@" >"$folder/$name.log" 2>&1
    status=$?
    case $status in
        0) said=ok ;;
        124 | 137) said="timed out" ;;
        *) said=failed ;;
    esac
    if [ "$status" -ne 0 ]; then
        failed=$((failed + 1))
        tail -n 15 -- "$folder/$name.log"
    fi
    entries+=("$(printf '{"step": "%s", "result": "%s", "exit": %d, "seconds": %d}' \
        "$name" "$said" "$status" "$((SECONDS - started))")")
    printf '%-10s %-9s %4d s\n' "$name" "$said" "$((SECONDS - started))"
}

step facts 12 bash -c 'nvidia-smi || echo "there is no nvidia-smi"; python3 -m benchmarks.gpu --facts'

step tests 150 python3 -m pytest -q --backend cupy -p no:cacheprovider --junitxml="$folder/tests.xml" \
    tests/test_layers.py tests/test_losses.py tests/test_optimizers.py tests/test_random.py tests/test_parity.py \
    tests/test_model.py tests/test_cupy_engine.py tests/test_augment.py tests/test_groups.py tests/test_clipping.py \
    tests/test_muon.py tests/test_averaging.py

step benchmark 240 python3 -m benchmarks.gpu --seconds 190 --json "$folder/benchmark.json"

step training 120 python3 -m benchmarks.gpu --seconds 90 --only training --json "$folder/training.json"

{
    printf '{"failed": %d, "steps": [\n' "$failed"
    (IFS=$'\n' && printf '%s\n' "${entries[*]}" | sed '$!s/$/,/')
    printf ']}\n'
} >"$folder/summary.json"

printf '%d of %d steps failed; see %s\n' "$failed" "${#entries[@]}" "$folder"
exit "$failed"
