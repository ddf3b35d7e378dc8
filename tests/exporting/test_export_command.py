"""`nnunet_ext export`, and the example that runs its file without PyTorch."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from examples import sliding_window_onnx
from nnunet_ext.cli.main import main, make_parser
from nnunet_ext.exporting import FORMATS, formats
from nnunet_ext.nnunet.trained_model import load_predictor
from nnunet_ext.utils.files import sha256_of
from tests.helpers.pages import block, blocks, page
from tests.helpers.paths import ROOT, TESTS
from tests.helpers.workspaces import SHIPPED

MODELS = TESTS / "data" / "version_0_1_0"
MODEL = MODELS / "LSTMSATrainer"
TEST_SCANS = SHIPPED / "imagesTs"
BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}


@pytest.fixture(autouse=True)
def _no_preprocessed_data(request, monkeypatch):
    if "nnunet_environment" not in request.fixturenames:
        monkeypatch.delenv("nnUNet_preprocessed", raising=False)


def export(model, file, name="torchscript", *options):
    return main(["export", str(model), "--format", name, "-o", str(file), *map(str, options)])


def test_a_model_and_its_description(tmp_path, capsys):
    file = tmp_path / "new folder" / "network.pt"
    assert export(MODEL, file, "torchscript", "-i", TEST_SCANS, "--tiles", 4) == 0
    assert sorted(path.name for path in file.parent.iterdir()) == ["network.pt", "network.pt.json"]
    out = capsys.readouterr().out
    assert f"wrote {file}: LSTMSA" in out
    assert "on 4 tiles of scans in imagesTs: hippocampus_089, hippocampus_193, hippocampus_288: logits differ by" in out
    described = json.loads((file.parent / "network.pt.json").read_text())
    patch = described["patch_size"]
    assert described["input"]["shape"] == ["batch", 1, *patch]
    assert described["output"]["shape"] == ["batch", 3, *patch]
    assert (described["trainer"], described["spacing_mm"]) == ("LSTMSATrainer", [1, 1, 1])
    assert described["normalisation"][0]["scheme"] == "ZScoreNormalization"
    assert described["normalisation"][0]["intensities"]["mean"] > 0
    assert described["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    checkpoint = MODEL / "fold_all" / "checkpoint_final.pth"
    assert described["checkpoint"] == {"fold": "all", "file": checkpoint.name, "sha256": sha256_of(checkpoint)}
    assert described["parity"]["passed"]
    assert len(described["parity"]["tiles"]) == described["parity"]["number_of_tiles"] == 4
    assert torch.jit.load(file)(torch.zeros(2, 1, *patch)).shape == (2, 3, *patch)


def test_without_scans_a_random_tile_is_compared_and_it_is_said(tmp_path, capsys):
    assert export(MODEL, tmp_path / "network.pt") == 0
    assert "on 1 tile of a random image, as no real one was given or found" in capsys.readouterr().out


def test_a_file_that_gives_other_logits_does_not_stay(tmp_path, monkeypatch, capsys):
    right = FORMATS["torchscript"]

    def write_wrong(network, batch, file):
        with torch.no_grad():
            next(network.decoder.seg_layers.parameters()).mul_(1.01)
            facts = right.write(network, batch, file)
            next(network.decoder.seg_layers.parameters()).div_(1.01)
        return facts

    monkeypatch.setitem(FORMATS, "torchscript", replace(right, write=write_wrong))
    assert export(MODEL, tmp_path / "network.pt") == 1
    assert "LSTMSA as torchscript differs from the original: logits by " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_an_exporter_does_not_support_is_named(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise NotImplementedError("no operator aten::strange")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=refuse))
    assert export(MODEL, tmp_path / "network.onnx", "onnx") == 1
    err = capsys.readouterr().err
    assert (
        f"LSTMSA cannot be exported as onnx with PyTorch {torch.__version__} (NotImplementedError: no operator" in err
    )
    assert "other formats: torch-export, torchscript" in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch, capsys):
    found = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    assert export(MODEL, tmp_path / "network.onnx", "onnx") == 2
    err = capsys.readouterr().err
    assert "--format onnx needs onnx, onnxscript, onnxruntime, which are not installed" in err
    assert "pip install 'nnunet_ext[export]'" in err


def test_wrong_arguments(tmp_path, capsys):
    folds = tmp_path / "model"
    shutil.copytree(MODEL, folds)
    for fold in "01":
        shutil.copytree(folds / "fold_all", folds / f"fold_{fold}")
    cases = [
        ((folds, ()), "has the folds 0, 1; a file holds one network: choose one with -f"),
        ((folds, ("-f", "2")), "has no checkpoint_final.pth of fold 2; it has 0, 1, all"),
        ((MODEL, ("--tiles", "0")), "--tiles 0 must be at least 1"),
        ((MODEL, ("-i", str(tmp_path / "none"))), "no such folder"),
        ((MODELS, ()), "is not a folder of a trained model"),
    ]
    for (model, options), message in cases:
        assert export(model, tmp_path / "network.pt", "torchscript", *options) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def nnunet_logits(model, folder):
    """Preprocessed image and logits of the first scan of a folder, by nnU-Net's predictor without mirroring."""
    predictor = load_predictor(model, "cpu", use_mirroring=False, allow_tqdm=False)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    arguments = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    data, *_ = preprocessor.run_case([str(sorted(folder.iterdir())[0])], None, *arguments)
    return data, predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float().numpy()


def total_weights(size, tile_size):
    """Sum of all tiles' weights at every voxel of an image that is at least as large as a tile."""
    patch = [1] * (len(size) - len(tile_size)) + tile_size
    weights = np.zeros(size)
    for corner in product(*map(sliding_window_onnx.starts, size, patch)):
        place = tuple(slice(at, at + length) for at, length in zip(corner, patch, strict=True))
        weights[place] += sliding_window_onnx.gaussian(patch)
    return weights


def check_example(model, tmp_path, *options):
    """The example in a process without PyTorch gives nnU-Net's labels where these are sure in its half precision.

    Returns which voxels are: those with a difference between the two largest logits, and with a weight that half
    precision holds to all its digits. At the corners of an image weights are subnormal there, and nnU-Net's logits were
    off by up to a tenth of the largest one (by a thousandth at most elsewhere).
    """
    network, image = tmp_path / "network.onnx", tmp_path / "image.npy"
    assert export(model, network, "onnx", *options) == 0
    data, logits = nnunet_logits(model, TEST_SCANS)
    np.save(image, data)
    example = str(ROOT / "examples" / "sliding_window_onnx.py")
    script = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['nnunetv2'] = sys.modules['nnunet_ext'] = None  # to import them fails\n"
        f"runpy.run_path({example!r}, run_name='__main__')\n"
    )
    arguments = [str(path) for path in (network, image, tmp_path / "labels.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    labels = np.load(tmp_path / "labels.npy")
    assert labels.shape == data.shape[1:]
    two = np.sort(logits, 0)[-2:]
    clear = two[1] - two[0] > 0.01 * np.abs(logits).max()
    described = json.loads(network.with_name(f"{network.name}.json").read_text())
    clear &= total_weights(data.shape[1:], described["patch_size"]) > 2 * np.finfo(np.float16).tiny
    # After two iterations of training a network is undecided in most voxels, and in how many differs from run to run.
    assert clear.sum() > 1000
    assert np.array_equal(labels[clear], logits.argmax(0)[clear])
    return clear


@pytest.mark.slow
def test_the_example_without_pytorch_segments_as_nnunet(tmp_path):
    assert check_example(MODEL, tmp_path).mean() > 0.5


def test_the_examples_window_and_labels():
    assert sliding_window_onnx.starts(110, 64) == [0, 23, 46]
    assert sliding_window_onnx.starts(64, 64) == [0]
    assert sliding_window_onnx.starts(4, 1) == [0, 1, 2, 3]
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    expected = compute_gaussian((20, 31), 1 / 8, 10, dtype=torch.float32, device=torch.device("cpu")).numpy()
    assert np.abs(sliding_window_onnx.gaussian((20, 31)) - expected).max() < 0.01
    logits = np.stack([np.array([[-1, 1, 1]]), np.array([[-1, -1, 1]])])
    regions = {"regions": True, "regions_class_order": [1, 2]}
    assert sliding_window_onnx.labels_of(logits, regions).tolist() == [[0, 1, 2]]
    assert sliding_window_onnx.labels_of(logits, {"regions": False}).tolist() == [[0, 0, 0]]


def test_the_page(tmp_path, monkeypatch):
    line = block(page("export"), "bash", "nnunet_ext export").replace("\\\n", " ").splitlines()[1]
    arguments = make_parser()[0].parse_args(shlex.split(line)[1:])
    assert (arguments.format, arguments.folds) == ("onnx", "0")
    monkeypatch.chdir(tmp_path)
    shutil.copy(sorted(TEST_SCANS.iterdir())[0], "scan_0000.nii.gz")
    (snippet,) = blocks(page("export"), "python")
    exec(compile(snippet, "export.md", "exec"), {"MODEL": MODEL})
    assert np.load("image.npy").ndim == 4


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
@pytest.mark.parametrize("trainer", ["SASANTrainer", "StockTrainer"])
def test_trained_models_on_their_preprocessed_data(nnunet_environment, trainer, configuration, tmp_path, capsys):
    nnunet_environment.run("nnUNetv2_train", "4", configuration, "0", "-tr", trainer, "-device", "cpu", **BUDGET)
    model = nnunet_environment.model(trainer, configuration).parent
    check_example(model, tmp_path)
    assert "6 tiles of the preprocessed dataset: hippocampus_" in capsys.readouterr().out
    described = json.loads((tmp_path / "network.onnx.json").read_text())
    assert (described["configuration"], described["opset"] > 16) == (configuration, True)
    for name in set(FORMATS) - {"onnx"}:
        assert export(model, tmp_path / name, name) == 0
