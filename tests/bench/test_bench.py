"""`nnunet_ext bench` at sizes that take a second; its measurements are checked against known values."""

import csv
import datetime
import json
import re
import subprocess
import time

import pytest
import torch
from torch import nn

import nnunet_ext
from nnunet_ext.bench import measure
from nnunet_ext.bench.measure import added_gigabytes, environment, interleaved_seconds, median_ratio, write_csv
from nnunet_ext.bench.operators import record, replay
from nnunet_ext.bench.setting import NETWORKS, Setting
from nnunet_ext.bench.steps import training_step
from nnunet_ext.bench.tables import scaling_rows
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


def test_scans_have_as_many_tiles_as_they_say(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(NETWORKS, "SASAN", lambda setting, _: CountsCalls(seen))
    bench(tmp_path, "--what", "tiles", "--patch", "16", "16", "--networks", "SASAN", "--tiles", "1", "5")
    assert sum(seen) == 2 * (1 + 5)  # a turn to warm up, and one that counts


class CountsCalls(nn.Module):
    """Three classes, as in its setting."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(len(x))
        return x.repeat(1, 3, 1, 1)


def test_exponents_are_of_the_three_largest_patches(monkeypatch):
    """Known times and memory: voxels to the power of 1.5, and of 0.5 except for the smallest patch."""
    sides = (16, 32, 64, 128)
    times = {f"{(side,) * 2}": [side**3.0] for side in sides}
    memory = iter([1000.0, *(float(side) for side in sides[1:])])
    monkeypatch.setattr("nnunet_ext.bench.tables.interleaved_seconds", lambda *_, **__: times)
    monkeypatch.setattr("nnunet_ext.bench.tables.added_gigabytes", lambda *_: next(memory))
    found = scaling_rows(["FAF-Net"], [Setting.of_patch((side,) * 2, 1) for side in sides], "cpu", 1)
    assert {(row["seconds_exponent"], row["added_GB_exponent"]) for row in found} == {("1.50", "0.50")}


def test_ratios_are_medians_over_the_turns():
    assert median_ratio([2, 30, 8], [1, 10, 1]) == 3  # not 8 / 1, the ratio of the medians


def test_memory_of_a_call_and_of_a_steps_gradients():
    held = added_gigabytes(lambda: torch.ones(25_000_000).sum())
    if held is None:
        pytest.skip("nothing counts resident memory here")
    assert 0.09 < held < 0.13
    step = training_step(nn.Linear(5000, 5000), torch.randn(1, 5000))
    step()
    assert (
        0.1 <= added_gigabytes(step) < 0.35
    )  # gradients of 25 million weights, and temporary tensors of clipping and SGD


def test_few_shot_networks_train_on_episodes():
    setting = Setting.of_patch((24, 16, 16), 1)
    network = setting.build("FAF-Net")
    images, support, masks = setting.training_inputs(network)
    assert (images.shape, support.shape) == ((1, 16, 1, 16, 16), (1, 10, 1, 16, 16))
    assert masks.shape == (1, 10, 2, 16, 16)
    assert torch.isfinite(training_step(network, images, support, masks)())


def test_a_plan_is_measured_as_it_is(nnunet, tmp_path, capsys):
    options = ["--plans", str(nnunet.plans_file), "--configuration", "2d_tiny", "--networks", "PlainConvUNet"]
    bench(tmp_path, *options)
    row = rows(tmp_path, "networks")[0]
    arguments = nnunet.plans["configurations"]["2d_tiny"]["architecture"]["arch_kwargs"]
    assert row["features"] == " ".join(map(str, arguments["features_per_stage"]))
    assert (row["patch"], row["batch"]) == ("24x16", "2")
    assert main(["bench", "--device", "cpu", "-o", str(tmp_path), *options, "--batch-size", "3"]) == 2
    assert "--plans has a patch and a batch size of its own" in capsys.readouterr().err


def test_a_plan_for_another_network_is_refused(nnunet, tmp_path, capsys):
    plans = nnunet.plans
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "nnunet_ext.networks.EMNet"
    for name, content in (("plans.json", plans), ("dataset.json", nnunet.dataset_json)):
        (tmp_path / name).write_text(json.dumps(content))
    options = ["--plans", str(tmp_path / "plans.json"), "--configuration", "2d"]
    assert main(["bench", "--device", "cpu", "-o", str(tmp_path), *options]) == 2
    assert re.search("is a plan for nnunet_ext.networks.EMNet; .* give a plan for PlainConv", capsys.readouterr().err)


def test_the_commit_is_of_our_checkout_alone(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "lib" / "nnunet_ext" / "bench" / "measure.py"))
    (tmp_path / "lib").mkdir()
    assert environment()["commit"] == f"version {nnunet_ext.__version__}"


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
    """A convolution and a linear layer: forward, and backward where gradients are needed."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 5))
    calls = record(training_step(network, torch.randn(4, 1, 8, 8)))
    names = [call.operator.overloadpacket.__name__ for call in calls]
    assert names == ["convolution", "addmm", "mm", "mm", "convolution_backward"]
    shapes = {tuple(like.shape) for like in calls[0].tensors}
    assert {(4, 1, 8, 8), (2, 1, 3, 3)} <= shapes
    replay(calls)()


def test_operators_within_custom_functions_are_seen():
    """Projections of axial attention in chunks, and the forward pass of a scan, in the layouts of the step."""
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
        (["--networks", "UNet"], "unknown network 'UNet'; .*known: .*SASAN"),
        (["--patch", "16"], "must have two or three sizes"),
        (["--patch", "17", "16", "16"], "nearest: "),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--what", "scaling", "--sizes", "50"], "--sizes 50 50 50 cannot be halved"),
        (["--what", "tiles", "--tiles", "4", "4"], "--tiles 4 must be two different numbers or more"),
        (["--plans", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_are_said(options, message, tmp_path, capsys):
    assert main(["bench", "--device", "cpu", "-o", str(tmp_path / "out"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_every_network_is_known():
    assert {"PlainConvUNet", "ResidualEncoderUNet", "SASAN", "EM-Net", "SALSTM", "LSTMSA", "FAF-Net"} <= set(NETWORKS)
