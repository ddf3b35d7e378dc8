"""Classes segmented one by one, with one encoding of the scan."""

import copy

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.fewshot.grid_prototypes import GridPrototypes
from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.nnunet.scans import scan_of


@pytest.fixture
def labelled(nnunet):
    """Two scans with their masks."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (nnunet.raw / "labelsTr").iterdir())[:2]
    return [
        (
            scan_of(nnunet.raw / "imagesTr" / f"{case}_0000.nii.gz", [".nii.gz"]),
            nnunet.raw / "labelsTr" / f"{case}.nii.gz",
        )
        for case in cases
    ]


@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
@pytest.mark.parametrize("kind", ["network", "prototypes", "local prototypes"])
def test_each_class_is_segmented_as_if_it_were_alone(make_model, labelled, tmp_path, configuration, kind):
    model = FewShotModel(make_model(configuration=configuration))
    if kind == "prototypes":
        model = model.with_networks([GridPrototypes(model.networks[0])])
    elif kind == "local prototypes":
        model = model.by_local_prototypes()
    (first, first_mask), (second, second_mask) = labelled
    examples = [(first, first_mask, 1), (first, first_mask, 2), (second, second_mask, 2)]
    masks, properties = model.segment_each(second, model.encode_each(examples, parts=3))
    assert masks.shape == (3, *sitk.GetArrayFromImage(sitk.ReadImage(second.files[0])).shape)
    assert "spacing" in properties
    for (scan, mask, label), found in zip(examples, masks, strict=True):
        model.show([(scan, mask)], [label], parts=3)
        model.segment(second, tmp_path / "alone.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "alone.nii.gz"))) == label, found)
    assert masks.any()


def test_folds_are_averaged_and_a_slice_is_one_part(make_model, labelled, tmp_path):
    """A scan of one slice: the number of parts does not matter."""
    scan, mask = labelled[0]
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    position = int((values == 2).sum((1, 2)).argmax())
    for source, name in ((scan.files[0], "one_0000.nii.gz"), (mask, "mask.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(source))[:, :, position : position + 1], str(tmp_path / name))
    one = scan_of(tmp_path / "one_0000.nii.gz", [".nii.gz"])
    folder = make_model(configuration="2d_tiny", folds=(0, 1))
    model = FewShotModel(folder)
    found = [
        model.segment_each(one, model.encode_each([(one, tmp_path / "mask.nii.gz", 2)], parts))[0] for parts in (1, 3)
    ]
    assert found[0].shape == (1, 1, *values.shape[1:])
    assert np.array_equal(*found)
    data, _, properties = model._preprocess(one, *model.reader.read_images(one.files))
    logits = []
    for fold in range(2):
        alone = copy.copy(model)
        alone.networks = [model.networks[fold]]
        supports = alone.encode_each([(one, tmp_path / "mask.nii.gz", 2)], 1)
        logits.append(alone._logits(alone.networks[0], supports[0], data, 1))
    expected = model._segmentation((logits[0] + logits[1]) / 2, 1, properties) > 0
    assert np.array_equal(found[0][0], expected)
