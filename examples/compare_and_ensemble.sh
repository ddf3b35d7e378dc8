#!/usr/bin/env bash
# From a dataset in nnU-Net's raw format to a result: plan, train, compare the trainers, ensemble the two best.
#
#     bash examples/compare_and_ensemble.sh DATASET OUTPUT [CONFIGURATION] [cpu|cuda|mps]
#
# nnU-Net's three folders must be set. Environment: TRAINERS (the first is the baseline), FOLDS, and our budget variables
# for short runs (StockTrainer respects them, nnUNetTrainer does not). If interrupted, run it again: it resumes.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash examples/compare_and_ensemble.sh DATASET OUTPUT [CONFIGURATION] [cpu|cuda|mps]" >&2
    exit 2
fi
dataset=$1 output=$2 configuration=${3:-3d_fullres} device=${4:-cuda}
read -ra trainers <<<"${TRAINERS:-nnUNetTrainer SASANTrainer EMNetTrainer}"
read -ra folds <<<"${FOLDS:-0 1 2 3 4}"
nnUNet_extTrainer="$(nnunet_ext trainers)"
export nnUNet_extTrainer
name=$(python -c 'import sys
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name as name
print(name(sys.argv[1]))' "$dataset")
model() { echo "$nnUNet_results/$name/$1__nnUNetPlans__$configuration"; }

if [ ! -f "$nnUNet_preprocessed/$name/nnUNetPlans.json" ]; then
    nnUNetv2_plan_and_preprocess -d "$dataset" -c "$configuration" --verify_dataset_integrity
fi

# --npz keeps the validation's probabilities, which ensembling needs.
for trainer in "${trainers[@]}"; do
    for fold in "${folds[@]}"; do
        run="$(model "$trainer")/fold_$fold"
        [ -f "$run/validation/summary.json" ] && continue
        resume=()
        compgen -G "$run/checkpoint_*.pth" >/dev/null && resume=(--c)
        nnUNetv2_train "$dataset" "$configuration" "$fold" -tr "$trainer" -device "$device" --npz "${resume[@]}"
    done
done

nnunet_ext compare -d "$dataset" -c "$configuration" -tr "${trainers[@]}" -f "${folds[@]}" \
    --baseline "${trainers[0]}" -o "$output/report"

# The two best by mean rank; nnU-Net evaluates each alone, their ensemble, and whether postprocessing helps.
read -ra best < <(python -c 'import json, sys
print(*list(json.load(open(sys.argv[1]))["ranks"])[:2])' "$output/report/summary.json")
echo "Ensemble of ${best[*]}"
nnUNetv2_find_best_configuration "$dataset" -c "$configuration" -tr "${best[@]}" -f "${folds[@]}"

# The same ensemble on the test scans and, if these have labels, its comparison with its members.
images="$nnUNet_raw/$name/imagesTs" truth="$nnUNet_raw/$name/labelsTs"
[ -d "$images" ] || exit 0
for trainer in "${best[@]}"; do
    nnUNetv2_predict -i "$images" -o "$output/$trainer" -d "$dataset" -c "$configuration" -tr "$trainer" \
        -f "${folds[@]}" -device "$device" --save_probabilities
done
nnUNetv2_ensemble -i "$output/${best[0]}" "$output/${best[1]}" -o "$output/ensemble"
if [ -d "$truth" ]; then
    nnunet_ext compare --predictions "${best[0]}=$output/${best[0]}" "${best[1]}=$output/${best[1]}" \
        "ensemble=$output/ensemble" --labels "$truth" --images "$images" -o "$output/report_test"
fi
