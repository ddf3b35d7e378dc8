"""Write a trained network to a file that runs without nnU-Net: ONNX, torch.export or TorchScript."""

import argparse
import sys
from pathlib import Path

FORMATS = ("torch-export", "onnx", "torchscript")
"""Names of `nnunet_ext.exporting.FORMATS`, which is not imported for a help text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="trained model's folder, TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what runs the file")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help="the network; beside it FILE.json"
    )
    parser.add_argument("-f", "--folds", metavar="FOLD", help="one fold; default: the only one that is trained")
    parser.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        metavar="FOLDER",
        help="scans on which the file is compared with the network (default: the preprocessed dataset, or a random "
        "tile where there is none)",
    )
    parser.add_argument("--tiles", type=int, default=6, help="tiles to compare on (default: %(default)s)")
    parser.epilog = (
        "The file takes tiles of the plan's patch size, in batches of any size, and returns logits. If its logits are "
        "not the network's, no file is left and the exit code is 1. Format onnx needs `nnunet_ext[export]`."
    )


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext import exporting

    try:
        done = exporting.run(
            arguments.model,
            arguments.format,
            arguments.output,
            fold=arguments.folds,
            checkpoint=arguments.checkpoint,
            scans=arguments.input,
            tiles=arguments.tiles,
        )
    except exporting.ExportError as error:
        print(f"nnunet_ext export: {error}", file=sys.stderr)
        return 1
    worst = done.parity.worst
    number = len(done.parity.tiles)
    print(f"wrote {done.file}: {done.network}, and {done.description}")
    print(
        f"compared with the original on {number} tile{'s' * (number > 1)} of {done.parity.source}: logits differ by at "
        f"most {worst.max_difference:.1e} ({worst.relative_difference:.1e} of the largest), Dice {worst.dice:.4f}"
    )
    return 0
