#!/usr/bin/env bash
# The steps of `nnunet_ext demo` as plain nnU-Net commands, with the demo's budget unless you set another.
#
#     bash examples/demo.sh FOLDER [cpu|cuda|mps]
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: bash examples/demo.sh FOLDER [cpu|cuda|mps]" >&2
    exit 2
fi
folder=$(mkdir -p "$1" && cd "$1" && pwd)
device=${2:-cpu}

export nnUNet_raw="$folder/nnUNet_raw"
export nnUNet_preprocessed="$folder/nnUNet_preprocessed"
export nnUNet_results="$folder/nnUNet_results"
nnUNet_extTrainer="$(nnunet_ext trainers)"
export nnUNet_extTrainer
export NNUNET_EXT_EPOCHS=${NNUNET_EXT_EPOCHS:-40}
export NNUNET_EXT_ITERATIONS=${NNUNET_EXT_ITERATIONS:-10}
export NNUNET_EXT_VAL_ITERATIONS=${NNUNET_EXT_VAL_ITERATIONS:-2}
mkdir -p "$nnUNet_raw/Dataset004_Hippocampus" "$nnUNet_preprocessed" "$nnUNet_results"
nnunet_ext doctor

# Real hippocampus scans, shipped with the package (CC-BY-SA 4.0) in nnU-Net's raw format.
scans=$(python -c 'import nnunet_ext, pathlib; print(pathlib.Path(nnunet_ext.__file__).parent / "data" / "hippocampus")')
cp -r "$scans"/{dataset.json,imagesTr,labelsTr,imagesTs} "$nnUNet_raw/Dataset004_Hippocampus"

nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -np 2 --verify_dataset_integrity

# Add a configuration to nnU-Net's plan: 3d_fullres with batch 2 and half the width, so that it also suits a CPU.
python - "$nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json" <<'PYTHON'
import copy, json, pathlib, sys
file = pathlib.Path(sys.argv[1])
plans = json.loads(file.read_text())
architecture = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
arguments = architecture["arch_kwargs"]
arguments["features_per_stage"] = [features // 2 for features in arguments["features_per_stage"]]
plans["configurations"]["3d_demo"] = {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": architecture}
file.write_text(json.dumps(plans, indent=4))
PYTHON

for trainer in SASANTrainer StockTrainer; do
    nnUNetv2_train 4 3d_demo 0 -tr "$trainer" -device "$device"
    nnUNetv2_predict -i "$nnUNet_raw/Dataset004_Hippocampus/imagesTs" -o "$folder/predictions/$trainer" \
        -d 4 -c 3d_demo -f 0 -tr "$trainer" -device "$device"
    grep -A 1 '"foreground_mean"' \
        "$nnUNet_results/Dataset004_Hippocampus/${trainer}__nnUNetPlans__3d_demo/fold_0/validation/summary.json"
done
