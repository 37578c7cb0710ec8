#!/usr/bin/env bash
# The trainer on one GPU: the same tiny run on GPU and CPU, then the tokens/s of a real shape with packing.
# usage: benchmarks/gpu/run.sh OUT DATA.jsonl TOKENIZER_DIR    (megatron-core and TransformerEngine importable)
set -uo pipefail
out=$1 data=$2 tokenizer=$3
export PYTHONPATH=${PYTHONPATH:-}:$PWD/trainer:$PWD/operator:$PWD/tests PYTORCH_ALLOC_CONF=expandable_segments:True
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
python3 benchmarks/gpu/make_inputs.py "$out/inputs" "$data" "$tokenizer"
for name in tiny-fp32 tiny-bf16 tiny-lora; do
  for device in cuda cpu; do
    MTJ_DEVICE=${device/cuda/} MTJ_TERMINATION_LOG=$out/$name-$device.failure NPROC_PER_NODE=1 \
      timeout 200 python3 -m megatron_trainer sft --config "$out/inputs/$name.yaml" --save "$out/runs/$name-$device" > "$out/$name-$device.log" 2>&1
    echo "$name $device exit $?"
  done
done
python3 benchmarks/gpu/compare.py "$out/runs"
for name in full full-ga lora; do
  NPROC_PER_NODE=1 MTJ_TERMINATION_LOG=$out/$name.failure timeout 300 python3 -m megatron_trainer sft \
    --config "$out/inputs/$name.yaml" --save "$out/runs/$name" > "$out/$name.log" 2>&1
  echo "$name exit $?"
  grep -E "tokens per second" "$out/$name.log" | tail -n 3
done
