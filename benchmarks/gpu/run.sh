#!/usr/bin/env bash
# The trainer on one GPU: tests/gpu (parity with transformers, adapters, exports, effects of GPU arguments), the same tiny
# run on GPU and CPU, then the tokens/s of a real shape with packing, in bfloat16 and FP8. The stage quickstart runs the
# example of that name with `mtj run`; QUICKSTART is the folder of its model and data (`make demo` leaves it in .cache/quickstart).
# The stage preference trains DPO beside TRL's DPOTrainer on the same pairs (preference.py; needs trl and datasets).
# Speeds are told with those of megatron-core alone, on the same shapes, in the same go.
# usage: [QUICKSTART=DIR] [CASES="full rows ..."] benchmarks/gpu/run.sh OUT DATA.jsonl TOKENIZER_DIR [STAGE ...]
#        STAGE: tests tiny speed (all of these, unless named), quickstart, preference
# (megatron-core, TransformerEngine and, for the tests, pytest importable; OUT/tests.xml holds each measured difference)
set -uo pipefail
out=$1 data=$2 tokenizer=$3
stages=" ${*:4} "
[[ $stages == "  " ]] && stages=" tests tiny speed "
export PYTHONPATH=${PYTHONPATH:-}:$PWD/trainer:$PWD/operator:$PWD PYTORCH_ALLOC_CONF=expandable_segments:True
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
[[ $stages == " preference " ]] || python3 benchmarks/gpu/make_inputs.py "$out/inputs" "$data" "$tokenizer"
if [[ $stages == *" tests "* ]]; then
  # Interrupted at the limit, pytest still says what failed so far and writes the measured differences.
  timeout -s INT -k 20 300 python3 -m pytest -v -m gpu -p no:cacheprovider --junitxml="$out/tests.xml" --tb=short \
    tests/gpu > "$out/tests.log" 2>&1
  echo "tests exit $?"
  grep -E "^(FAILED|ERROR) |^E   |= .*(passed|failed|interrupted)" "$out/tests.log" | cut -c1-240
  python3 benchmarks/gpu/compare.py --tests "$out/tests.xml"
fi
if [[ $stages == *" tiny "* ]]; then
  for name in tiny-fp32 tiny-bf16 tiny-lora; do
    for device in cuda cpu; do
      MTJ_DEVICE=${device/cuda/} MTJ_TERMINATION_LOG=$out/$name-$device.failure NPROC_PER_NODE=1 \
        timeout 200 python3 -m megatron_trainer sft --config "$out/inputs/$name.yaml" --save "$out/runs/$name-$device" > "$out/$name-$device.log" 2>&1
      echo "$name $device exit $?"
    done
  done
  python3 benchmarks/gpu/compare.py "$out/runs"
fi
if [[ $stages == *" speed "* ]]; then
  for name in ${CASES:-full full-ga lora full-fp8 rows rows-fp8 lora-7b lora-7b-fp8 lora-8b-2k experts experts-rows}; do
    NPROC_PER_NODE=1 MTJ_TERMINATION_LOG=$out/$name.failure timeout 300 python3 -m megatron_trainer sft \
      --config "$out/inputs/$name.yaml" --save "$out/runs/$name" > "$out/$name.log" 2>&1
    echo "$name exit $?"
    python3 benchmarks/gpu/compare.py --speed "$out/runs/$name"
  done
  for options in "shape" "shape --fp8" "experts"; do
    python3 benchmarks/gpu/raw_megatron_core.py "$out/inputs/"$options 2> "$out/raw.log" || tail -n 5 "$out/raw.log"
  done
fi
if [[ $stages == *" quickstart "* ]]; then
  sed /nprocPerNode/d examples/quickstart/trainjob.yaml > "$out/quickstart.yaml" # one process per GPU
  timeout 300 python3 -c "from megatron_operator.cli import main; raise SystemExit(main())" run "$out/quickstart.yaml" --device cuda --state-dir "$out/jobs" \
    --volume "quickstart-data=$QUICKSTART" > "$out/quickstart.log" 2>&1
  echo "quickstart exit $?"
  tail -n 25 "$out/quickstart.log"
fi
if [[ $stages == *" preference "* ]]; then
  python3 benchmarks/gpu/preference.py "$out/preference" "$data" "$tokenizer" ${PREFERENCE:-} 2> "$out/preference.log" || tail -n 5 "$out/preference.log"
fi
