"""Pack a trained model into one file, with checksums, a model card and an example that proves it."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder DATASET/TRAINER__PLANS__CONFIGURATION of the results")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, model.zip")
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="default: all that are trained")
    parser.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("--licence", default="not stated", help="the model's licence, such as CC-BY-4.0")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="report of compare or crossval, for its accuracy")
    parser.add_argument("--intended-use", metavar="TEXT", help="for the model card (default: research)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this Hugging Face repository, too")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.epilog = (
        "nnUNetv2_install_pretrained_model_from_zip installs the file as well. It holds no scans and no names of cases "
        "beyond those in nnU-Net's own plans."
    )


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.sharing.card import Statements
    from nnunet_ext.sharing.packing import pack

    given = {"intended_use": arguments.intended_use, "report": arguments.report}
    statements = Statements(**{key: value for key, value in given.items() if value is not None})
    output = Path(arguments.output)
    manifest = pack(
        arguments.model,
        output,
        arguments.folds,
        checkpoint=arguments.checkpoint,
        licence=arguments.licence,
        statements=statements,
    )
    print(f"wrote {output}: {manifest.model}, folds {', '.join(manifest.folds)}, {output.stat().st_size / 1e6:.1f} MB")
    if manifest.code:
        print(f"with the source of {manifest.trainer}; who installs it must allow code")
    source = output.name
    if arguments.push is not None:
        from nnunet_ext.sharing.archive import read_text
        from nnunet_ext.sharing.hub import push
        from nnunet_ext.sharing.manifest import CARD

        card = read_text(output, f"{manifest.model}/{CARD}")
        source = push(output, card, arguments.push, manifest.licence, arguments.private)
    print(f"install with: nnunet_ext install {source}")
    return 0
