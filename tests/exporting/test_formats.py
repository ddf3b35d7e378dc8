"""Every network in every format: which work is what docs/export.md says."""

import re
from itertools import product

import pytest
from torch import nn

from nnunet_ext.blocks.conv import ConvNormAct
from nnunet_ext.check.cases import subjects
from nnunet_ext.check.subject import Subject
from nnunet_ext.cli import export
from nnunet_ext.exporting import FORMATS, ExportError, formats
from nnunet_ext.exporting.parity import compare
from nnunet_ext.exporting.tiles import random_tile
from nnunet_ext.networks.em_net.efl import EFL
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer
from nnunet_ext.nnunet.trainers import find_trainer
from tests.helpers.paths import ROOT
from tests.helpers.small_networks import build

PAGE = ROOT / "docs" / "export.md"
QUICK = [("SASANTrainer", "2D", "torchscript"), ("FAFNetTrainer", "3D", "torchscript")]


def documented():
    """Trainer, case and format of each cell of the page's table, and whether it says that the cell works."""
    rows = re.findall(r"^\| [^|]+ \| `(\w+Trainer)` \| ([^|]+) \|(.+)\|$", PAGE.read_text(), re.M)
    for trainer, cases, cells in rows:
        works = [cell.strip() == "works" for cell in cells.split("|")]
        for case, (name, expected) in product(cases.split(", "), zip(FORMATS, works, strict=True)):
            yield trainer, case.strip(), name, expected


def every_cell():
    """Those of networks that are not ours, and of the largest one, are left to a run of everything."""
    long = ("MONAI", "UNETR", "SwinUNETR", "MedNeXt", "FAFNetResNet101")
    return [pytest.param(*cell, marks=pytest.mark.long if cell[0].startswith(long) else ()) for cell in documented()]


def exported(network, chosen, file, channels, patch):
    tiles = [random_tile(channels, patch)]
    formats.write(chosen, network, tiles[0][None], file)
    return compare(network, formats.load(chosen, file), tiles, source="noise", regions=False)


def check_cell(trainer, case, name, works, tmp_path):
    found = dict(subjects(find_trainer(trainer), None, "cpu"))[case]
    assert isinstance(found, Subject), found
    network = found.network().eval()
    arguments = network, FORMATS[name], tmp_path / "file", found.input_channels, found.patch_size
    if works:
        assert exported(*arguments).passed
        return
    try:
        passed = exported(*arguments).passed
    except ExportError:
        return
    assert not passed, f"{trainer} in {case} works as {name}, but docs/export.md says that it does not"


@pytest.mark.parametrize(("trainer", "case", "name"), QUICK)
def test_a_few_cells(trainer, case, name, tmp_path):
    check_cell(trainer, case, name, True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "case", "name", "works"), every_cell())
def test_the_page_says_what_works(trainer, case, name, works, tmp_path):
    check_cell(trainer, case, name, works, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("network", "case"), [("sasan", "anisotropic"), ("em_net", "odd level sizes")])
def test_sizes_of_all_kinds_and_several_channels(network, case, name, tmp_path):
    built = build(network, case, input_channels=2).eval()
    assert exported(built, FORMATS[name], tmp_path / "file", 2, built.patch_size).passed


def test_the_command_knows_the_formats():
    assert list(export.FORMATS) == list(FORMATS)


def test_the_page_covers_every_network():
    trainers = {trainer for trainer, *_ in documented()}
    assert trainers >= {
        *("SASANTrainer", "EMNetTrainer", "SALSTMTrainer", "LSTMSATrainer", "LSTMSAMTUNetTrainer", "FAFNetTrainer"),
        *("UMambaEncTrainer", "UMambaBotTrainer", "StockTrainer"),
    }


class Small(nn.Sequential):
    """One block with each kind of operators that need a portable form: norm, transform, convolution in time, scan."""

    patch = (12, 10)

    def __init__(self):
        super().__init__(
            ConvNormAct(nn.Conv2d, 1, 4, (3, 3)),
            EFL(4, self.patch),
            MambaLayer(4, self.patch, channel_tokens=False),
        )


@pytest.mark.parametrize("name", ["torch-export", "torchscript"])
def test_blocks_of_every_kind(name, tmp_path):
    assert exported(Small().eval(), FORMATS[name], tmp_path / "file", 1, Small.patch).passed


def test_blocks_of_every_kind_in_onnx(tmp_path):
    """As loops, and without operators of this package, with which a file would run only where it is installed."""
    onnx = pytest.importorskip("onnx")
    assert exported(Small().eval(), FORMATS["onnx"], tmp_path / "file", 1, Small.patch).passed
    model = onnx.load(tmp_path / "file")
    assert not [entry.domain for entry in model.opset_import if "nnunet" in entry.domain]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [formats.INPUT, formats.OUTPUT]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Scan") == 3
    assert len(kinds) < 250
    batch, *others = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [size.dim_value for size in others] == [1, *Small.patch]
