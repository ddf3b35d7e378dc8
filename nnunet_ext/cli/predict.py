"""Predict a folder of scans by nnU-Net's own code; unreadable scans are skipped and reported at the end."""

import argparse
import os
import sys
from pathlib import Path

from nnunet_ext.nnunet.trainers import check_trainers_exist
from nnunet_ext.utils.devices import DEVICES, choose_device

_TRAINER, _PLANS = "nnUNetTrainer", "nnUNetPlans"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", required=True, metavar="FOLDER", help="scans, named as nnU-Net's")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for the masks")
    parser.add_argument("-d", "--dataset", help="number or name")
    parser.add_argument("-c", "--configuration", help="e.g. 3d_fullres")
    parser.add_argument("-tr", "--trainer", help=f"default: {_TRAINER}")
    parser.add_argument("-p", "--plans", help=f"default: {_PLANS}")
    parser.add_argument(
        "--model", metavar="FOLDER", help="trained model's folder, TRAINER__PLANS__CONFIGURATION, instead of -d and -c"
    )
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="default: all that are trained")
    parser.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument(
        "-step_size",
        type=float,
        default=0.5,
        help="step of the sliding window, as a fraction of the patch (default: %(default)s)",
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    parser.add_argument("--save_probabilities", action="store_true", help="needed for ensembles")
    parser.add_argument(
        "--continue_prediction", "--c", action="store_true", help="predict only scans without a complete mask"
    )
    parser.add_argument("-prev_stage_predictions", dest="previous", metavar="FOLDER", help="masks, for a cascade")
    parser.add_argument("-num_parts", type=int, default=1, help="processes that share the scans (default: 1)")
    parser.add_argument("-part_id", type=int, default=0, help="number of this process, from 0 (default: 0)")
    for option, does in (("npp", "preprocess"), ("nps", "write masks")):
        default = os.environ.get(f"nnUNet_{option}", "3")  # a string goes through `type`, as if it had been typed
        parser.add_argument(f"-{option}", type=int, default=default, help=f"processes that {does} (default: {default})")
    parser.add_argument("-device", "--device", choices=DEVICES, default="auto", help="default: %(default)s")
    parser.add_argument("--not_on_device", action="store_true", help="keep predictions in the memory of the CPU")
    parser.add_argument("--disable_progress_bar", action="store_true", help="for logs")
    parser.add_argument("--verbose", action="store_true", help="print nnU-Net's messages")
    parser.epilog = (
        "A scan that cannot be read, whose channels differ in geometry, or that has NaN or infinite voxels does not "
        "stop the others; it is named at the end, and the exit code is 1."
    )


def run(arguments: argparse.Namespace) -> int:
    for name in ("npp", "nps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"-{name} {getattr(arguments, name)} must be at least 1")
    if not 0 < arguments.step_size <= 1:
        raise ValueError(f"-step_size {arguments.step_size:g} must be above 0 and at most 1")
    _check_model(arguments)
    check_trainers_exist([arguments.trainer] if arguments.trainer else [])
    device = choose_device(arguments.device)

    from nnunet_ext.nnunet.scans import check_other_folder, scans_in
    from nnunet_ext.nnunet.trained_model import load_predictor
    from nnunet_ext.predict import CheckedScans, PredictionTask, part_of
    from nnunet_ext.utils.files import check_writable

    check_other_folder(arguments.output, arguments.input)
    predictor = load_predictor(
        arguments.model or _model_of(arguments),
        device,
        arguments.folds,
        arguments.checkpoint,
        tile_step_size=arguments.step_size,
        use_mirroring=not arguments.disable_tta,
        perform_everything_on_device=not arguments.not_on_device,
        verbose=arguments.verbose,
        verbose_preprocessing=arguments.verbose,
        allow_tqdm=not arguments.disable_progress_bar,
    )
    plans, configuration, dataset = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    previous = Path(arguments.previous) if arguments.previous else None
    if (previous is None) != (configuration.previous_stage_name is None):
        raise ValueError("-prev_stage_predictions is for a model of a cascade, and such a model needs it")
    values = frozenset(int(value) for value in predictor.label_manager.all_labels)
    task = PredictionTask(
        Path(arguments.output), dataset["file_ending"], previous, arguments.save_probabilities, values
    )
    found, bad = scans_in(arguments.input, [task.ending])
    scans = part_of(found, arguments.part_id, arguments.num_parts)
    check_writable(task.target)
    reader = plans.image_reader_writer_class()
    if arguments.continue_prediction:
        scans = [scan for scan in scans if not task.is_done(reader, scan)]
    channels = len(dataset.get("modality") or dataset["channel_names"])
    checked = CheckedScans(task, plans.image_reader_writer_class, channels, arguments.npp, bad)
    checked.attach(predictor, scans)
    total = len(scans) + len(bad)
    try:
        if scans:
            predictor.predict_from_files(
                [list(scan.files) for scan in scans],
                [str(task.target / scan.case) for scan in scans],
                save_probabilities=task.probabilities,
                num_processes_preprocessing=arguments.npp,
                num_processes_segmentation_export=arguments.nps,
                folder_with_segs_from_prev_stage=arguments.previous,
            )
            print(f"Wrote {checked.ready} of {total} masks to {task.target}")
    finally:
        for failure in sorted(checked.failures, key=lambda failure: failure.case):
            print(f"{failure.case}: {failure.reason}", file=sys.stderr)
    return 1 if checked.failures else 0


def _check_model(arguments: argparse.Namespace) -> None:
    named = {"-d": arguments.dataset, "-c": arguments.configuration, "-tr": arguments.trainer, "-p": arguments.plans}
    given = [option for option, value in named.items() if value is not None]
    if arguments.model is not None and given:
        raise ValueError(f"--model names the model already; leave out {', '.join(given)}")
    missing = [option for option in ("-d", "-c") if option not in given]
    if arguments.model is None and missing:
        raise ValueError(f"{' and '.join(missing)} missing: the model is named by -d, -c, -tr and -p, or by --model")


def _model_of(arguments: argparse.Namespace) -> str:
    """The model's folder where nnU-Net's training writes it."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_ext.nnunet.datasets import dataset_name

    trainer, plans = arguments.trainer or _TRAINER, arguments.plans or _PLANS
    try:
        return str(get_output_folder(dataset_name(arguments.dataset), trainer, plans, arguments.configuration))
    except RuntimeError as error:
        raise ValueError(f"-d {arguments.dataset}: {error}") from error
