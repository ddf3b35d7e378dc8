#!/usr/bin/env bash
# The steps of `nnunet_ext demo` as plain nnU-Net commands.
#
#     bash examples/demo.sh FOLDER [DEVICE]
#
# NNUNET_EXT_EPOCHS, NNUNET_EXT_ITERATIONS and NNUNET_EXT_VAL_ITERATIONS bound the trainings; without them they run
# nnU-Net's full 1000 epochs of 250 iterations.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
device=${2:-cuda}

export nnUNet_raw="$folder/nnUNet_raw"
export nnUNet_preprocessed="$folder/nnUNet_preprocessed"
export nnUNet_results="$folder/nnUNet_results"
nnUNet_extTrainer="$(nnunet_ext trainers)"
export nnUNet_extTrainer
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
nnunet_ext doctor

# Real hippocampus scans, shipped with the package (CC-BY-SA 4.0) in nnU-Net's raw format.
scans=$(python -c 'import nnunet_ext, pathlib; print(pathlib.Path(nnunet_ext.__file__).parent / "data" / "hippocampus")')
cp -r "$scans" "$nnUNet_raw/Dataset004_Hippocampus"

nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -np 2 --verify_dataset_integrity

for trainer in SASANTrainer StockTrainer; do
    nnUNetv2_train 4 3d_fullres 0 -tr "$trainer" -device "$device"
    nnUNetv2_predict -i "$nnUNet_raw/Dataset004_Hippocampus/imagesTs" -o "$folder/predictions/$trainer" \
        -d 4 -c 3d_fullres -f 0 -tr "$trainer" -device "$device"
    cat "$nnUNet_results/Dataset004_Hippocampus/${trainer}__nnUNetPlans__3d_fullres/fold_0/validation/summary.json"
done
