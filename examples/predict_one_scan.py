"""Builds SASAN from a plan and predicts one scan with nnU-Net's predictor.

    python examples/predict_one_scan.py MODEL IMAGE OUTPUT [--device cpu]

MODEL is a trained model's folder, for example
$nnUNet_results/Dataset004_Hippocampus/SASANTrainer__nnUNetPlans__3d_fullres. IMAGE is a scan in the training data's
format (one channel), and OUTPUT is the mask to write.
"""

import argparse
import json
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.networks import SASAN
from nnunet_ext.training import network_from_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    plans = PlansManager(str(arguments.model / "plans.json"))
    dataset = json.loads((arguments.model / "dataset.json").read_text())
    # nnU-Net's checkpoints hold Python objects, so load only files that you trust.
    checkpoint = torch.load(
        arguments.model / f"fold_{arguments.fold}" / "checkpoint_final.pth", map_location="cpu", weights_only=False
    )
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])

    network = network_from_plan(
        SASAN,
        configuration,
        input_channels=determine_num_input_channels(plans, configuration, dataset),
        num_classes=plans.get_label_manager(dataset).num_segmentation_heads,
        deep_supervision=False,
    )
    network.load_state_dict(checkpoint["network_weights"])

    predictor = nnUNetPredictor(device=torch.device(arguments.device))
    predictor.manual_initialization(
        network,
        plans,
        configuration,
        [checkpoint["network_weights"]],
        dataset,
        checkpoint["trainer_name"],
        checkpoint["inference_allowed_mirroring_axes"],
    )
    image, properties = plans.image_reader_writer_class().read_images([str(arguments.image)])
    mask = predictor.predict_single_npy_array(image, properties)
    plans.image_reader_writer_class().write_seg(mask, str(arguments.output), properties)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
