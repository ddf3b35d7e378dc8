"""Label maps in any order of axes and any format: the same scores, or an error, never a silent difference."""

from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.study import Case, Method, Study
from nnunet_ext.nnunet.label_maps import align, read_label_map, read_pair
from tests.helpers.label_files import SHAPE, blobs, to_image, write

PATIENT = settings(deadline=None, max_examples=25, derandomize=True)
AXES = st.permutations([0, 1, 2])
FLIPS = st.lists(st.booleans(), min_size=3, max_size=3)
FORMATS = st.sampled_from([".nii.gz", ".nrrd", ".mha"])
TYPES = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])


def stored(image, axes, flips):
    """The same voxels in the same space, in another order."""
    return sitk.Flip(sitk.PermuteAxes(image, axes), flips)


def scores(truth: Path, prediction: Path, reader: str = "SimpleITKIO") -> np.ndarray:
    """Dice, NSD, HD95 and volumes of both labels, as compare measures them."""
    labels = LabelSet({"first": 1, "second": 2}, None, ".nii.gz", reader)
    case = {"case": Case("case", "test", prediction, truth, None)}
    study = Study("", [Method("A", case)], "A", labels, ["test"])
    with TemporaryDirectory() as cache:
        table = measure(study, dict.fromkeys(labels.labels, 1.2), Path(cache), 1)
    return table.drop(columns=["entrant", "repeat", "case", "fold", "label"]).to_numpy(float)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return scores(write(folder / "t.nii.gz", blobs(1)), write(folder / "p.nii.gz", blobs(2)))


@PATIENT
@given(AXES, FLIPS, FORMATS, TYPES)
def test_another_order_of_both_or_another_format_changes_no_score(pair, axes, flips, ending, dtype):
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}{ending}") for name in ("t", "p")]
        for seed, file in enumerate(files, 1):
            sitk.WriteImage(stored(to_image(blobs(seed).astype(dtype)), axes, flips), str(file))
        np.testing.assert_allclose(scores(*files), pair, rtol=1e-9)


@PATIENT
@given(AXES, FLIPS, FORMATS, st.booleans())
def test_another_order_of_one_of_them_changes_no_score(pair, axes, flips, ending, truth):
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}{ending}") for name in ("t", "p")]
        for seed, file in enumerate(files, 1):
            image = to_image(blobs(seed))
            sitk.WriteImage(stored(image, axes, flips) if (seed == 1) == truth else image, str(file))
        np.testing.assert_allclose(scores(*files), pair, rtol=1e-9)


@PATIENT
@given(AXES.filter(lambda axes: axes != [0, 1, 2]), st.booleans())
def test_voxels_in_another_order_than_their_header_says_are_refused(axes, truth):
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("t.nii.gz", "p.nii.gz")]
        for seed, file in enumerate(files, 1):
            write(file, blobs(seed).transpose(axes) if (seed == 1) == truth else blobs(seed))
        with pytest.raises(ValueError, match=r"differ in size .*they do not occupy the same space"):
            scores(*files)


@PATIENT
@given(st.integers(0, 2), st.floats(-3, 3), FORMATS)
def test_a_shift_is_taken_below_half_a_voxel_and_refused_beyond(pair, axis, voxels, ending):
    """Distances are relative to the voxel; there is a note unless it is only the rounding of headers."""
    moved = [5.0, -3.0, 7.0]
    spacing = (1e-3, 1.5e-3, 2e-3)  # microscopy in mm: a fixed tolerance of micrometres would pass everything
    moved[axis] += voxels * spacing[axis]
    with TemporaryDirectory() as folder:
        truth = write(Path(folder, f"t{ending}"), blobs(1), spacing=spacing)
        prediction = write(Path(folder, f"p{ending}"), blobs(2), spacing=spacing, origin=tuple(moved))
        if abs(voxels) > 0.51:
            with pytest.raises(ValueError, match="do not occupy the same space"):
                read_pair(SimpleITKIO(), truth, prediction)
        elif abs(voxels) < 0.49:
            _, found = read_pair(SimpleITKIO(), truth, prediction)
            assert np.array_equal(found.values, blobs(2))
            if abs(voxels) > 0.02:
                assert f"voxels off {truth}" in found.note
            elif abs(voxels) < 0.005:
                assert found.note == ""


@pytest.mark.parametrize("reader", [NibabelIO, NibabelIOWithReorient])
def test_nibabels_readers_bring_maps_to_one_order_too(tmp_path, reader):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    truth = nibabel.Nifti1Image(blobs(1), affine)
    prediction = nibabel.Nifti1Image(blobs(2), affine)
    nibabel.save(truth, tmp_path / "t.nii.gz")
    nibabel.save(prediction, tmp_path / "p.nii.gz")
    turned = prediction.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    assert turned.shape != prediction.shape
    names = [tmp_path / f"{name}.nii.gz" for name in ("t", "p", "turned")]
    expected = scores(names[0], names[1], reader.__name__)
    np.testing.assert_allclose(scores(names[0], names[2], reader.__name__), expected, rtol=1e-9)
    assert 0 < expected[0][0] < 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_in_its_plane_whichever_axis_it_is_flat_along(tmp_path, axis):
    """The same slice as 2D image, and as (1, H, W), (H, 1, W), (H, W, 1) with the same spacing in the plane."""
    flat = [blobs(seed, (8, 10)) for seed in (1, 2)]
    spacing = [1.0, 1.5]  # x, y
    two = [write(tmp_path / f"{i}.nii.gz", mask, spacing=tuple(spacing)) for i, mask in enumerate(flat)]
    spacing.insert(2 - axis, 4.0)
    three = [
        write(tmp_path / f"{i}_3d.nii.gz", np.expand_dims(mask, axis), spacing=tuple(spacing))
        for i, mask in enumerate(flat)
    ]
    np.testing.assert_allclose(scores(*three), scores(*two), rtol=1e-9)


def test_a_line_of_voxels_is_measured(tmp_path):
    line = np.array([0, 1, 1, 2, 2, 0, 1, 1], np.uint8)
    files = [
        write(tmp_path / "t.nii.gz", line[None, None]),
        write(tmp_path / "p.nii.gz", np.roll(line, 1)[None, None]),
    ]
    dice = scores(*files)[:, 0]
    assert dice == pytest.approx([2 * 2 / 8, 2 * 1 / 4])


def test_one_time_point_of_a_4d_file_is_a_label_map(tmp_path):
    write(tmp_path / "t.nii.gz", blobs(1))
    four = sitk.JoinSeries([to_image(blobs(1))])
    sitk.WriteImage(four, str(tmp_path / "p.nii.gz"))
    assert scores(tmp_path / "t.nii.gz", tmp_path / "p.nii.gz")[:, 0] == pytest.approx([1, 1])


def test_a_map_is_brought_to_an_images_grid(tmp_path):
    image = to_image(blobs(3).astype(np.float32))
    sitk.WriteImage(stored(to_image(blobs(1)), [1, 2, 0], [True, False, True]), str(tmp_path / "m.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "i.nii.gz"))
    _, properties = SimpleITKIO().read_images([str(tmp_path / "i.nii.gz")])
    mask = read_label_map(SimpleITKIO(), tmp_path / "m.nii.gz")
    assert mask.values.shape != SHAPE
    assert np.array_equal(align(mask, "i.nii.gz", properties, SHAPE).values, blobs(1))


def test_a_rotated_map_is_refused(tmp_path):
    image = to_image(blobs(1))
    write(tmp_path / "t.nii.gz", blobs(1))
    c, s = np.cos(0.5), np.sin(0.5)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "p.nii.gz"))
    with pytest.raises(ValueError, match=r"differ in direction .* do not occupy the same space"):
        scores(tmp_path / "t.nii.gz", tmp_path / "p.nii.gz")
