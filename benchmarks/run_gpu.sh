#!/usr/bin/env bash
# All tests and benchmarks of gpucnn for a machine with an NVIDIA GPU, in under nine minutes.
#
#     benchmarks/run_gpu.sh [FOLDER]        output folder, by default benchmarks/results/gpu-DATE
#
# Needs a python3 with CuPy, NumPy, SciPy, safetensors, rich, typer, pytest and hypothesis; PyTorch is measured as well
# where it is installed, and with pytest-xdist eight processes test. gpucnn itself need not be installed. Where
# GPUCNN_DATA names a folder that holds CIFAR-10, or some of its sheets, networks are trained on what is there,
# otherwise on synthetic digits; training.json says on which.
#
# Every step has its own time limit, and the others run even if it fails. The exit status is the number of failed steps;
# the last lines list them, and so does summary.json.
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
    # INT lets pytest, and Python, write down what they have by then
    timeout --signal=INT --kill-after=15 "$limit" "$@" >"$folder/$name.log" 2>&1
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

# The engine's own tests come first, should time run out. Compiling takes most of it, which processes do side by side.
side_by_side=()
if python3 -c 'import xdist' 2>/dev/null; then side_by_side=(-n 8); fi
step tests 240 python3 -m pytest -q -ra "${side_by_side[@]}" --backend cupy -p no:cacheprovider \
    --junitxml="$folder/tests.xml" tests/backends/test_cupy_engine.py tests/engine/test_gpu_steps.py tests/layers/test_layers.py \
    tests/layers/test_losses.py tests/training/test_optimizers.py tests/training/test_clipping.py tests/training/test_groups.py tests/training/test_muon.py \
    tests/training/test_averaging.py tests/data/test_augment.py tests/training/test_model.py tests/backends/test_random.py tests/engine/test_parity.py \
    --deselect tests/backends/test_random.py::test_initializer_dirac_trains_twenty_plain_layers \
    --deselect tests/engine/test_parity.py::test_parity_of_the_strict_backend_with_numpy # these two compute on the CPU alone

step benchmark 180 python3 -m benchmarks.gpu --seconds 140 --json "$folder/benchmark.json"

step training 100 python3 -m benchmarks.gpu --seconds 75 --only training --json "$folder/training.json"

{
    printf '{"failed": %d, "steps": [\n' "$failed"
    (IFS=$'\n' && printf '%s\n' "${entries[*]}" | sed '$!s/$/,/')
    printf ']}\n'
} >"$folder/summary.json"

printf '%d of %d steps failed; see %s\n' "$failed" "${#entries[@]}" "$folder"
exit "$failed"
