#!/bin/sh
# Segments the scans in /input with the model in /model; masks go to /output. Options are those of `nnunet_ext predict`.
set -eu
mounted=${NNUNET_EXT_MODEL:-/model}
model=$mounted
if [ ! -f "$model/plans.json" ]; then
    model=$(find "$mounted" -maxdepth 4 -name plans.json -exec dirname {} \; | sort | head -n 1)
fi
if [ -z "$model" ]; then
    echo "$mounted has no trained model: mount a folder with plans.json, dataset.json and fold_0" >&2
    exit 2
fi
mkdir -p "${nnUNet_raw:?}" "${nnUNet_preprocessed:?}" "${nnUNet_results:?}"
nnUNet_extTrainer=$(nnunet_ext trainers)
export nnUNet_extTrainer
exec nnunet_ext predict --model "$model" -i "${NNUNET_EXT_INPUT:-/input}" -o "${NNUNET_EXT_OUTPUT:-/output}" "$@"
