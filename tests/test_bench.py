"""`nnunet_ext bench` at sizes of a second; what it measures is checked against what is known of it."""

import csv
import datetime
import re
import time

import pytest
import torch
from torch import nn

from nnunet_ext.bench.measure import interleaved_seconds, write_csv
from nnunet_ext.bench.operators import record, replay
from nnunet_ext.bench.setting import NETWORKS, Setting
from nnunet_ext.bench.steps import training_step
from nnunet_ext.cli.main import main


def rows(folder, name):
    with (folder / f"{name}_cpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def bench(folder, *options):
    assert main(["bench", "--device", "cpu", "--repeats", "1", "-o", str(folder), *options]) == 0


def test_networks_side_by_side(tmp_path):
    bench(tmp_path, "--patch", "16", "16", "--networks", "PlainConvUNet", "SASAN", "FAF-Net")
    found = rows(tmp_path, "networks")
    assert [(row["what"], row["network"]) for row in found] == [
        (what, name) for what in ("forward", "training step") for name in ("PlainConvUNet", "SASAN", "FAF-Net")
    ]
    for row in found:
        assert float(row["seconds"]) > 0
        parameters = sum(p.numel() for p in Setting.of_patch((16, 16)).build(row["network"]).parameters())
        assert row["parameters_M"] == f"{parameters / 1e6:.2f}"
        assert row["torch"] == torch.__version__
        assert row["commit"]
    assert {row["of_PlainConvUNet"] for row in found if row["network"] == "PlainConvUNet"} == {"1.00"}


def test_scaling_and_tiles(tmp_path):
    bench(
        tmp_path,
        *("--what", "scaling", "tiles", "--patch", "16", "16", "--networks", "PlainConvUNet"),
        *("--sizes", "16", "32", "--tiles", "1", "2"),
    )
    assert [row["patch"] for row in rows(tmp_path, "scaling")] == ["16x16", "32x32"]
    assert len({row["features"] for row in rows(tmp_path, "scaling")}) == 1  # of one network
    assert len(rows(tmp_path, "tiles")) == 2


def test_a_label_stands_in_the_files_name(tmp_path):
    bench(tmp_path, "--patch", "16", "16", "--networks", "PlainConvUNet", "--label", "small")
    assert [path.name for path in tmp_path.iterdir()] == ["networks_small_cpu.csv"]
    row = rows(tmp_path, "networks_small")[0]
    assert (row["repeats"], row["clock"]) == ("1", "wall")
    assert row["kernels"]
    datetime.date.fromisoformat(row["date"])


def test_rows_of_an_earlier_version_lack_columns(tmp_path):
    write_csv(tmp_path / "mixed_cpu.csv", [{"a": 1}, {"a": 2, "b": 3}], {"c": "4"})
    assert rows(tmp_path, "mixed") == [{"a": "1", "b": "", "c": "4"}, {"a": "2", "b": "3", "c": "4"}]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_processor_s_clock_leaves_waiting_out():
    def wait():
        time.sleep(0.2)

    assert interleaved_seconds({"wait": wait}, 1)["wait"][0] >= 0.2
    assert interleaved_seconds({"wait": wait}, 1, clock="processor")["wait"][0] < 0.1


def test_the_processor_s_clock_adds_threads_up(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        options = ["--patch", "16", "16", "--networks", "PlainConvUNet", "--threads", "2", "--clock", "processor"]
        assert main(["bench", "--device", "cpu", "-o", str(tmp_path), *options]) == 2
    finally:
        torch.set_num_threads(before)
    assert "the processor's clock needs one thread, not 2: --threads 1" in capsys.readouterr().err


def test_operators_are_those_of_the_step():
    """A convolution and a linear layer: forward, and backward for what needs it."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 5))
    calls = record(training_step(network, torch.randn(4, 1, 8, 8)))
    names = [call.operator.overloadpacket.__name__ for call in calls]
    assert names == ["convolution", "addmm", "mm", "mm", "convolution_backward"]
    shapes = {tuple(like.shape) for like in calls[0].tensors}
    assert {(4, 1, 8, 8), (2, 1, 3, 3)} <= shapes
    replay(calls)()


def test_operators_within_custom_functions_are_seen():
    """Projections of axial attention in chunks, and the forward pass of a scan; layouts as they are in the step."""
    sasan = Setting.of_patch((16, 16)).build("SASAN")
    calls = record(training_step(sasan, torch.randn(1, 1, 16, 16)))
    names = {call.operator.overloadpacket.__name__ for call in calls}
    assert {"addmm", "convolution_backward"} <= names
    maps = [call.tensors[0] for call in calls if call.operator.overloadpacket is torch.ops.aten.convolution]
    assert any(like.strides[1] == 1 and like.shape[1] > 1 for like in maps)

    em_net = Setting.of_patch((32, 32)).build("EM-Net")
    calls = record(training_step(em_net, torch.randn(2, 1, 32, 32)))
    scans = [call.operator.overloadpacket.__name__ for call in calls if call.scans]
    for name in ("selective_scan", "causal_conv1d"):
        assert scans.count(name) == scans.count(f"{name}_backward") > 0
    replay(calls)()


def test_steps_against_products_and_scans(tmp_path):
    bench(tmp_path, "--what", "operators", "--patch", "32", "32", "--networks", "EM-Net", "SALSTM")
    em_net, salstm = rows(tmp_path, "operators")
    assert float(em_net["scans_seconds"]) > 0
    assert 0 < float(em_net["step_of_products_and_scans"]) < float(em_net["step_of_products"])
    assert salstm["scans_seconds"] == salstm["step_of_products_and_scans"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--networks", "UNet"], "unknown network 'UNet'; known: .*SASAN"),
        (["--patch", "16"], "must have two or three sizes"),
        (["--patch", "17", "16", "16"], "nearest: "),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--plans", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_are_said(options, message, tmp_path, capsys):
    assert main(["bench", "--device", "cpu", "-o", str(tmp_path / "out"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_every_network_is_known():
    assert {"PlainConvUNet", "ResidualEncoderUNet", "SASAN", "EM-Net", "SALSTM", "LSTMSA", "FAF-Net"} <= set(NETWORKS)
