#!/usr/bin/env bash
# The demo's trainings as plain nnU-Net commands, with the demo's budget unless you set another, and predictions.
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
export NNUNET_EXT_EPOCHS=${NNUNET_EXT_EPOCHS:-10}
export NNUNET_EXT_ITERATIONS=${NNUNET_EXT_ITERATIONS:-50}
export NNUNET_EXT_VAL_ITERATIONS=${NNUNET_EXT_VAL_ITERATIONS:-2}
mkdir -p "$nnUNet_raw/Dataset004_Hippocampus" "$nnUNet_preprocessed" "$nnUNet_results"
nnunet_ext doctor

# Real hippocampus scans, shipped with the package (CC-BY-SA 4.0) in nnU-Net's raw format.
scans=$(python -c 'import nnunet_ext, pathlib; print(pathlib.Path(nnunet_ext.__file__).parent / "data" / "hippocampus")')
cp -r "$scans"/{dataset.json,imagesTr,labelsTr,imagesTs} "$nnUNet_raw/Dataset004_Hippocampus"

# Voxels of 2 mm instead of 1 mm, so that minutes on two CPU cores are enough.
nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -np 2 -npfp 2 --verify_dataset_integrity -overwrite_target_spacing 2 2 2

for trainer in SASANTrainer StockTrainer; do
    nnUNetv2_train 4 3d_fullres 0 -tr "$trainer" -device "$device"
    nnUNetv2_predict -i "$nnUNet_raw/Dataset004_Hippocampus/imagesTs" -o "$folder/predictions/$trainer" \
        -d 4 -c 3d_fullres -f 0 -tr "$trainer" -device "$device"
    grep -A 1 '"foreground_mean"' \
        "$nnUNet_results/Dataset004_Hippocampus/${trainer}__nnUNetPlans__3d_fullres/fold_0/validation/summary.json"
done

nnunet_ext compare -d 4 -c 3d_fullres -tr StockTrainer SASANTrainer -f 0 -o "$folder/report"
