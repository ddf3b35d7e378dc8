"""Measure time, memory and scaling of networks on this machine against nnU-Net's own; writes CSV files."""

import argparse
from pathlib import Path

from nnunet_ext.bench.numbers import check_numbers
from nnunet_ext.cli.names import MEASURED, known_name, unknown_name
from nnunet_ext.nnunet.trainers import check_trainers_exist
from nnunet_ext.utils.devices import DEVICES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--what",
        nargs="+",
        default=["networks"],
        choices=["networks", "operators", "scaling", "tiles"],
        help="networks: side by side; operators: training steps against their convolutions and matrix products alone; "
        "scaling: against the patch size; tiles: prediction against the number of tiles (default: networks)",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="N",
        help="networks to measure; ratios are relative to the first (default: all that fit)",
    )
    parser.add_argument(
        "-tr",
        "--trainers",
        nargs="+",
        default=[],
        metavar="TR",
        help="trainers whose networks to measure too, your own for instance (without --networks: beside PlainConvUNet)",
    )
    parser.add_argument("--patch", nargs="+", type=int, help="patch size in voxels (default: 40 56 40)")
    parser.add_argument("--batch-size", type=int, help="batch size of a training step (default: 2)")
    parser.add_argument(
        "-p", "--plans", help="plans file with its dataset.json in the same folder, instead of patch and batch size"
    )
    parser.add_argument(
        "-c", "--configuration", default="3d_fullres", help="configuration of the plans (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[32, 48, 64], help="patch sizes for scaling (default: 32 48 64)"
    )
    parser.add_argument(
        "--tiles", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of tiles for tiles (default: 1 2 4 8)"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=["float32", "autocast"])
    parser.add_argument(
        "--modes", nargs="+", default=["eager"], choices=["eager", "compiled"], help="compiling takes minutes on a CPU"
    )
    parser.add_argument("-device", "--device", choices=DEVICES, default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats after the warm-up (default: %(default)s)")
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="wall-clock time, or processor time of one thread for a machine with other users (default: wall)",
    )
    parser.add_argument("-o", "--output", default="nnunet_ext_bench", help="output folder (default: %(default)s)")
    parser.add_argument("--label", default="", help="label in the file names: networks_LABEL_cpu.csv")


def run(arguments: argparse.Namespace) -> int:
    tiles = arguments.tiles if "tiles" in arguments.what else None
    check_numbers(arguments.repeats, arguments.batch_size, arguments.sizes, tiles, arguments.threads)
    networks = None if arguments.networks is None else [_network(name) for name in arguments.networks]
    check_trainers_exist(arguments.trainers)
    from nnunet_ext.bench import run as bench

    bench.run(
        what=arguments.what,
        networks=networks,
        trainers=arguments.trainers,
        plan=(Path(arguments.plans), arguments.configuration) if arguments.plans else None,
        patch_size=tuple(arguments.patch) if arguments.patch else None,
        batch_size=arguments.batch_size,
        sizes=arguments.sizes,
        tiles=arguments.tiles,
        precisions=arguments.precisions,
        modes=arguments.modes,
        device=arguments.device,
        threads=arguments.threads,
        repeats=arguments.repeats,
        output=Path(arguments.output),
        label=arguments.label,
        clock=arguments.clock,
    )
    return 0


def _network(name: str) -> str:
    """The name of a network in its own spelling, or of a trainer."""
    found = known_name(name, MEASURED)
    if found is not None:
        return found
    try:
        check_trainers_exist([name])
    except ValueError as error:
        raise unknown_name(name, MEASURED, ", and the names of trainers") from error
    return name
