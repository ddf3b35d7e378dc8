"""`nnunet_ext fewshot` on a model in nnU-Net's layout; a trained one is in test_console.py."""

import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from nnunet_ext.cli.main import main
from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.nnunet.scans import scan_of
from tests.helpers.pages import block, page

LABELS = {0, 2}


@pytest.fixture
def scans(nnunet, tmp_path):
    """One scan to show, three to segment, in a folder."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (nnunet.raw / "labelsTr").iterdir())[:4]
    queries = tmp_path / "queries"
    queries.mkdir()
    for case in cases[1:]:
        shutil.copy(nnunet.raw / "imagesTr" / f"{case}_0000.nii.gz", queries)
    shown = [
        str(nnunet.raw / folder / f"{cases[0]}{end}.nii.gz")
        for folder, end in (("imagesTr", "_0000"), ("labelsTr", ""))
    ]
    return {"image": shown[0], "mask": shown[1], "queries": queries, "cases": cases[1:]}


def command(model, scans, output, *more, label="2", **change):
    values = {"image": scans["image"], "mask": scans["mask"], "queries": scans["queries"]} | change
    return main(
        [
            *("fewshot", "--model", str(model), "--support", str(values["image"]), "--mask", str(values["mask"])),
            *("--label", *label.split(), "-i", str(values["queries"]), "-o", str(output), "--device", "cpu", *more),
        ]
    )


def geometry(path):
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def test_masks_are_written_in_the_scans_geometry_and_evaluated(make_model, scans, nnunet, tmp_path, capsys):
    moved = sitk.ReadImage(str(scans["queries"] / f"{scans['cases'][0]}_0000.nii.gz"))
    moved.SetOrigin((3, -4, 5))
    moved.SetSpacing((1.0, 1.25, 1.5))
    moved.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(moved, str(scans["queries"] / "moved_0000.nrrd"))
    output = tmp_path / "masks"
    labels = tmp_path / "truth"
    shutil.copytree(nnunet.raw / "labelsTr", labels)
    truth = sitk.ReadImage(str(labels / f"{scans['cases'][0]}.nii.gz"))
    truth.CopyInformation(moved)
    sitk.WriteImage(truth, str(labels / "moved.nrrd"))
    assert command(make_model(), scans, output, "--labels", str(labels), label="1 2") == 0
    shown = capsys.readouterr().out
    assert "Wrote 4 of 4 masks" in shown
    for case in [*scans["cases"], "moved"]:
        ending = "nrrd" if case == "moved" else "nii.gz"
        written = output / f"{case}.{ending}"
        assert geometry(written) == geometry(scans["queries"] / f"{case}_0000.{ending}")
        values = set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(written)))))
        assert values <= {0, 1, 2}
    table = pd.read_csv(output / "dice.csv")
    assert list(table.columns) == ["case", "label", "dice"]
    assert sorted(set(table.case)) == sorted([*scans["cases"], "moved"])
    assert len(table) == 8
    for row in table.itertuples():
        ending = "nrrd" if row.case == "moved" else "nii.gz"
        truth, found = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{row.case}.{ending}"))) == row.label
            for folder in (labels, output)
        )
        assert row.dice == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert f"| **mean** | {table[table.label == 1].dice.mean():.3f} |" in shown
    assert shown.strip().endswith((output / "dice.md").read_text().strip())


def test_the_class_is_what_the_mask_shows(make_model, scans, tmp_path):
    """The network's own prediction with these prototypes, slice by slice, in the support scan itself."""
    model = FewShotModel(make_model())
    (network,) = model.networks
    scan = scan_of(scans["image"], model.endings)
    model.show([(scan, scans["mask"])], [2], parts=2)
    model.segment(scan, tmp_path / "mask.nii.gz")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    assert set(np.unique(written)) <= LABELS

    image = sitk.GetArrayFromImage(sitk.ReadImage(scans["image"])).astype(np.float32)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(scans["mask"])) == 2
    image = (image - image.mean()) / image.std()
    present = np.flatnonzero(mask.any((1, 2)))
    extent = present[-1] - present[0] + 1
    height, width = model.configuration.patch_size[-2:]
    for part, position in enumerate(present[0] + int((i + 0.5) * extent / 2) for i in range(2)):
        rows, columns = np.nonzero(mask[position])
        centre = [round(rows.mean() + 0.5 - height / 2), round(columns.mean() + 0.5 - width / 2)]
        top, left = (min(max(c, 0), n - s) for c, n, s in zip(centre, mask.shape[1:], (height, width), strict=True))
        cut = (position, slice(top, top + height), slice(left, left + width))
        expected = network.encode_support(
            torch.from_numpy(image[cut])[None, None], torch.from_numpy(mask[cut])[None, None].float()
        )
        torch.testing.assert_close(model.supports[0][part].prototypes, expected.prototypes, rtol=1e-3, atol=1e-5)


def test_by_position_nothing_is_found_where_the_support_shows_nothing(make_model, scans, tmp_path):
    """The label is shown in four slices of the support; a threshold that everything passes finds all of the same."""
    mask = sitk.ReadImage(scans["mask"])
    kept = sitk.GetArrayFromImage(mask)
    first = int(np.flatnonzero((kept == 2).any((1, 2)))[2])
    kept[:first] = kept[first + 4 :] = 0
    changed = sitk.GetImageFromArray(kept)
    changed.CopyInformation(mask)
    sitk.WriteImage(changed, str(tmp_path / "mask.nii.gz"))
    model = FewShotModel(make_model())
    for threshold in model.networks[0].encoder.threshold.modules():
        if isinstance(threshold, torch.nn.Conv2d):
            torch.nn.init.constant_(threshold.weight, 10)
    scan = scan_of(scans["image"], model.endings)
    found = {}
    for match in ("extent", "position"):
        model.show([(scan, tmp_path / "mask.nii.gz")], [2], match=match)
        model.segment(scan, tmp_path / "found.nii.gz")
        found[match] = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "found.nii.gz"))) == 2).any((1, 2))
    assert (len(model.supports[0]), len(kept)) == (40, len(found["position"]))
    assert found["extent"].all()
    assert np.flatnonzero(found["position"]).tolist() == list(range(first, first + 4))


def test_what_surrounds_the_label_competes_with_it(make_model, scans, tmp_path):
    """The background's logit is 0 or the largest of the sectors'; those of the labels do not change."""
    model = FewShotModel(make_model())
    (network,) = model.networks
    scan = scan_of(scans["image"], model.endings)
    logits, image = {}, sitk.GetArrayFromImage(sitk.ReadImage(scans["image"])).astype(np.float32)
    image = ((image - image.mean()) / image.std())[None]
    for sectors in (0, 4):
        model.show([(scan, scans["mask"])], [2, 1], parts=1, sectors=sectors)
        assert model.supports[0][0].prototypes.shape[0] == 2 * (1 + sectors)
        logits[sectors] = model._logits(network, model.supports[0], image)
    torch.testing.assert_close(logits[4][1:], logits[0][1:], rtol=1e-3, atol=1e-3)
    assert (logits[0][0] == 0).all()
    assert (logits[4][0] >= 0).all()
    assert (logits[4][0] > 0).any()
    with pytest.raises(ValueError, match="`sectors`=-1 must be at least 0"):
        model.show([(scan, scans["mask"])], [2], sectors=-1)


def test_several_supports_and_folds_are_averaged(make_model, scans, nnunet, tmp_path):
    folder = make_model(folds=(0, 1))
    both, first = FewShotModel(folder), FewShotModel(folder, folds=["0"])
    assert (len(both.networks), len(first.networks)) == (2, 1)
    scan = scan_of(scans["image"], both.endings)
    case = scans["cases"][0]
    other = scan_of(scans["queries"] / f"{case}_0000.nii.gz", both.endings)
    examples = [(scan, scans["mask"]), (other, nnunet.raw / "labelsTr" / f"{case}.nii.gz")]
    alone = []
    for example in examples:
        first.show([example], [1, 2])
        alone.append(torch.stack([support.prototypes for support in first.supports[0]]))
    first.show(examples, [1, 2])
    assert len(first.supports[0]) == 3
    together = torch.stack([support.prototypes for support in first.supports[0]])
    torch.testing.assert_close(together, sum(alone) / 2)
    assert not torch.allclose(alone[0], alone[1])


def test_a_bad_scan_does_not_stop_the_others(make_model, scans, tmp_path, capsys):
    (scans["queries"] / "broken_0000.nii.gz").write_bytes(b"no image")
    for channel in (0, 1):
        shutil.copy(scans["image"], scans["queries"] / f"double_000{channel}.nii.gz")
    output = tmp_path / "masks"
    labels = tmp_path / "truth"
    labels.mkdir()
    shutil.copy(scans["mask"], labels / f"{scans['cases'][0]}.nii.gz")
    assert command(make_model(), scans, output, "--labels", str(labels)) == 1
    shown = capsys.readouterr()
    assert "Wrote 3 of 5 masks" in shown.out
    problems = shown.err.splitlines()
    assert any(line.startswith("broken: ") for line in problems)
    assert "double: double has 2 channel(s), the model has 1" in problems
    assert sum("no labels of it in" in line for line in problems) == 2
    assert sorted(path.name for path in output.glob("*.nii.gz")) == [
        f"{case}.nii.gz" for case in sorted(scans["cases"])
    ]


def change_mask(scans, path, change):
    mask = sitk.ReadImage(scans["mask"])
    changed = change(mask)
    sitk.WriteImage(changed, str(path))
    return path


def shift(mask):
    mask.SetOrigin((1, 2, 3))
    return mask


@pytest.mark.parametrize(
    ("change", "label", "message"),
    [
        (lambda mask: sitk.Cast(mask, sitk.sitkFloat32) * 0.999999, "2", r"has the values 0\.999999, 1\.999998; exp"),
        (
            lambda mask: sitk.Compose(mask, mask * 0, mask * 0),
            "2",
            r"mask\.nii\.gz has 3 channels, a label map has",
        ),
        (
            lambda mask: sitk.Compose(mask * 0, mask, mask * 0),
            "2",
            r"mask\.nii\.gz has 3 channels, a label map has",
        ),
        (shift, "2", r"differ in origin .*\[1\.0, 2\.0, 3\.0\]"),
        (lambda mask: mask[:-1], "2", r"differ in size \(\d+, \d+, \d+\) and \(\d+, \d+, \d+\)"),
        (lambda mask: mask * 0, "2", "is empty: it shows nothing to look for"),
        (lambda mask: mask, "2 7", "has no label 7; it has 1, 2"),
        (lambda mask: mask, "0", r"labels \[0\] must be positive and different"),
        (lambda mask: mask, "2 2", r"labels \[2, 2\] must be positive and different"),
    ],
)
def test_masks_that_do_not_serve_are_said(make_model, scans, tmp_path, change, label, message):
    file = change_mask(scans, tmp_path / "mask.nii.gz", change)
    model = FewShotModel(make_model())
    with pytest.raises(ValueError, match=message):
        model.show([(scan_of(scans["image"], model.endings), file)], list(map(int, label.split())))


def test_a_mask_in_another_order_of_axes_shows_the_same(make_model, scans, tmp_path):
    file = change_mask(
        scans, tmp_path / "mask.nii.gz", lambda mask: sitk.Flip(sitk.PermuteAxes(mask, [2, 0, 1]), [True, False, True])
    )
    model = FewShotModel(make_model())
    shown = []
    for mask in (scans["mask"], file):
        model.show([(scan_of(scans["image"], model.endings), mask)], [2])
        shown.append(model.supports[0][0].prototypes)
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=0)


def test_true_labels_with_other_values_are_named_and_not_scored(make_model, scans, nnunet, tmp_path, capsys):
    """The first is stored flipped in the same space, the second has 255 for 2, the third is there in two formats."""
    labels = tmp_path / "truth"
    labels.mkdir()
    paths = [nnunet.raw / "labelsTr" / f"{case}.nii.gz" for case in scans["cases"]]
    flipped = sitk.Flip(sitk.ReadImage(str(paths[0])), [True, True, False])
    sitk.WriteImage(flipped, str(labels / paths[0].name))
    image = sitk.ReadImage(str(paths[1]))
    sitk.WriteImage(sitk.ChangeLabel(image, {2: 255}), str(labels / paths[1].name))
    for ending in (".nii.gz", ".nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(paths[2])), str(labels / f"{scans['cases'][2]}{ending}"))
    output = tmp_path / "masks"
    assert command(make_model(), scans, output, "--labels", str(labels)) == 1
    problems = capsys.readouterr().err
    wrong = f"{labels / paths[1].name} has the value 255; expected 0, 1, 2: the values of the support masks"
    assert f"{scans['cases'][1]}: {wrong}" in problems
    assert f"{scans['cases'][2]}: labels of it in several formats" in problems
    table = pd.read_csv(output / "dice.csv")
    assert list(table.case) == [scans["cases"][0]]
    files = paths[0], output / paths[0].name
    truth, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == 2 for file in files)
    assert table.dice[0] == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))


def test_true_labels_of_a_dataset_may_have_more_than_the_support_mask(make_model, scans, nnunet, tmp_path, capsys):
    """Whoever looks for one organ need not draw the others; the dataset's true labels have them all."""
    mask = change_mask(scans, tmp_path / "mask.nii.gz", lambda mask: sitk.Cast(mask == 2, mask.GetPixelID()) * 2)
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    shutil.copytree(nnunet.raw / "labelsTr", dataset / "labelsTr")
    model, scores = make_model(), []
    for output in (tmp_path / "first", tmp_path / "second"):
        code = command(model, scans, output, "--labels", str(dataset / "labelsTr"), mask=mask)
        problems = capsys.readouterr().err
        scores.append((code, problems.count("has the value 1; expected 0, 2: the values of the support masks")))
        shutil.copy(nnunet.raw / "dataset.json", dataset)
    assert scores == [(1, 3), (0, 0)]
    assert list(pd.read_csv(tmp_path / "second" / "dice.csv").case) == sorted(scans["cases"])


def test_what_is_no_scan_is_named_beside_those_that_are(make_model, scans, tmp_path, capsys):
    queries = scans["queries"]
    shutil.copy(scans["mask"], queries / f"{scans['cases'][0]}.nii.gz")
    shutil.copy(scans["image"], queries / "pat_2019.nii.gz")
    (queries / f"._{scans['cases'][0]}_0000.nii.gz").write_bytes(b"Mac OS X")
    assert command(make_model(), scans, tmp_path / "masks") == 1
    shown = capsys.readouterr()
    assert "Wrote 3 of 5 masks" in shown.out
    assert f"{scans['cases'][0]}.nii.gz: has no channel number and stands beside the scan" in shown.err
    assert "pat: has the channels 2019; channels are numbered 0000" in shown.err
    assert "._" not in shown.err


def test_a_support_with_other_channels_and_a_missing_pair_are_said(make_model, scans, tmp_path, capsys):
    model = make_model()
    for channel in (0, 1):
        shutil.copy(scans["image"], tmp_path / f"double_000{channel}.nii.gz")
    assert command(model, scans, tmp_path / "out", image=tmp_path / "double_0000.nii.gz") == 2
    assert "double has 2 channel(s), the model has 1" in capsys.readouterr().err
    assert command(model, scans, tmp_path / "out", "--mask", scans["mask"]) == 2
    assert "1 --support and 2 --mask: give a mask with each" in capsys.readouterr().err
    assert command(model, scans, tmp_path / "out", mask=tmp_path / "nothing.nii.gz") == 2
    assert "--mask: no such file" in capsys.readouterr().err
    assert command(model, scans, tmp_path / "out", "--labels", str(tmp_path / "nowhere")) == 2
    assert "--labels: no such folder" in capsys.readouterr().err


def test_models_that_cannot_do_it_are_said(make_model, scans, tmp_path, capsys):
    assert command(tmp_path / "nowhere", scans, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "is not a folder of a trained model (TRAINER__PLANS__CONFIGURATION): no plans.json" in said
    model = make_model()
    assert command(model, scans, tmp_path / "out", "--folds", "3") == 2
    assert "has no checkpoint_final.pth of fold 3; it has 0" in capsys.readouterr().err
    assert command(make_model("SASANTrainer"), scans, tmp_path / "out") == 2
    assert "holds SASAN of SASANTrainer, which cannot learn a class from a support" in capsys.readouterr().err


def test_the_pages_command(make_model, scans, tmp_path, monkeypatch):
    line = block(page("fewshot"), "bash", "nnunet_ext fewshot --model")
    names = {"MODEL": make_model(), "SCAN_0000.nii.gz": scans["image"], "MASK.nii.gz": scans["mask"]}
    names |= {"INPUT": scans["queries"], "OUTPUT": tmp_path / "masks"}
    assert main([str(names.get(word, word)) for word in line.split()[1:]]) == 0
    assert len(list((tmp_path / "masks").iterdir())) == 3


def test_local_prototypes_instead_of_a_threshold(make_model, scans, tmp_path, capsys):
    folder, found = make_model(), {}
    for options in ((), ("--local-prototypes",)):
        assert command(folder, scans, tmp_path / "masks", *options) == 0
        found[options] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "masks" / f"{scans['cases'][0]}.nii.gz")))
    with_threshold, with_local = found.values()
    assert with_local.any()
    assert (with_local != with_threshold).any()
    assert command(folder, scans, tmp_path / "masks", "--local-prototypes", "--sectors", "8") == 2
    assert "--local-prototypes and --sectors both say what competes with the label" in capsys.readouterr().err


def test_a_2d_model_segments_volumes_slice_by_slice(make_model, scans, tmp_path):
    output = tmp_path / "masks"
    options = ("--match", "position", "--parts", "12", "--sectors", "8")
    assert command(make_model("FAFNetTrainer", "2d_tiny"), scans, output, *options) == 0
    case = scans["cases"][0]
    assert geometry(output / f"{case}.nii.gz") == geometry(scans["queries"] / f"{case}_0000.nii.gz")
