"""Convert the authors' published weights to a file for nnUNetv2_train -pretrained_weights."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", help="short name of the network, as `nnunet_ext networks` lists it, or mt_unet")
    parser.add_argument("input", help="the authors' checkpoint (a state dict saved by torch)")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--heads", type=int, help="attention heads, where tensors do not show them (sasan)")
    parser.add_argument(
        "--patch-size", type=int, nargs="+", help="voxels per axis, where tensors do not show it (em_net, mt_unet)"
    )
    parser.add_argument("--efl-layout", help="authors or spatial (em_net; default: authors)")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.weights import from_authors, read_state_dict, write_pretrained
    from nnunet_ext.weights.authors import check_importable

    check_importable(arguments.network)
    given = {name: getattr(arguments, name) for name in ("heads", "patch_size", "efl_layout")}
    settings = {name: value for name, value in given.items() if value is not None}
    network = from_authors(arguments.network, read_state_dict(arguments.input), **settings)
    write_pretrained(network, arguments.output)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"wrote {arguments.output}: {type(network).__name__}, {parameters:,} parameters")
    print(f"for a plan with patch size {getattr(network, 'patch_size', '?')} and the same stages and features")
    return 0
