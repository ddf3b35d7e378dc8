"""Install a packed model, after checking it and predicting its example."""

import argparse
import os
from pathlib import Path

from nnunet_ext.utils.devices import DEVICES, choose_device

_RESULTS = "nnUNet_results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a file of `nnunet_ext pack`, or hf://OWNER/NAME of a Hugging Face repository that has one",
    )
    parser.add_argument("--results", metavar="FOLDER", help=f"where to install it (default: ${_RESULTS})")
    parser.add_argument("--allow-code", action="store_true", help="let it bring code, if you trust its author")
    parser.add_argument("--any-version", action="store_true", help="try it in spite of other versions")
    parser.add_argument("--overwrite", action="store_true", help="replace a model of the same name")
    parser.add_argument("-device", "--device", choices=DEVICES, default="auto", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    results = arguments.results or os.environ.get(_RESULTS)
    if not results:
        raise ValueError(f"the environment variable {_RESULTS} is not set; name the folder with --results")
    device = choose_device(arguments.device)

    from nnunet_ext.sharing.hub import is_reference, pull
    from nnunet_ext.sharing.installing import Permissions, install
    from nnunet_ext.sharing.manifest import CODE_FOLDER

    permissions = Permissions(arguments.allow_code, arguments.any_version, arguments.overwrite)
    file = pull(arguments.file) if is_reference(arguments.file) else Path(arguments.file)
    target = install(file, Path(results), permissions, device)
    print(f"Installed in {target}")
    if (target / CODE_FOLDER).is_dir():
        print(f'Its trainer: export nnUNet_extTrainer="$(nnunet_ext trainers){os.pathsep}{target / CODE_FOLDER}"')
    print(f"Predict with: nnunet_ext predict -i SCANS -o MASKS --model {target}")
    return 0
