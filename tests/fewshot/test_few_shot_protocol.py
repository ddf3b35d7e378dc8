"""The choice of support slices and files; see test_few_shot_command.py for whole runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext.fewshot.protocol import query_parts, shown_slices, support_slices
from nnunet_ext.fewshot.slices import image_slice, window, window_start
from nnunet_ext.nnunet.scans import Failure, Scan, geometry_differences, scan_of, scans_in

ENDINGS = [".nii.gz", ".nrrd"]


@given(slices=st.integers(1, 200), parts=st.integers(1, 12))
def test_parts_are_equal_and_cover_the_volume(slices, parts):
    found = query_parts(slices, parts)
    assert [k for part in found for k in part] == list(range(slices))
    assert len(found) == parts
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1


def volume(*present, slices=12):
    mask = np.zeros((slices, 4, 4), bool)
    mask[list(present), 1, 2] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "parts", "expected"),
    [
        (volume(*range(2, 11)), 3, [3, 6, 9]),  # the middles of 2..4, 5..7 and 8..10
        (volume(*range(2, 11)), 1, [6]),
        (volume(*range(12)), 3, [2, 6, 10]),  # of an even number the upper middle
        (volume(4), 3, [4, 4, 4]),
        (volume(4, 5), 3, [4, 5, 5]),
        (volume(0, 1, 9, 10, 11), 3, [1, 9, 10]),  # no foreground in the middle of the middle part: the nearest
    ],
)
def test_a_part_is_shown_by_its_middle_slice(mask, parts, expected):
    assert support_slices(mask, parts) == expected


@pytest.mark.parametrize(
    ("parts", "match", "expected"),
    [
        (None, "extent", [3, 6, 9]),
        (3, "position", [2, 6, 10]),  # 10 is shown, and shows nothing
        (12, "position", list(range(12))),
        (24, "position", [k // 2 for k in range(24)]),
    ],
)
def test_parts_are_of_the_labels_extent_or_of_the_scan(parts, match, expected):
    assert shown_slices(volume(*range(2, 10), 10), parts, match) == expected
    assert len(shown_slices(volume(5), None, "position")) == 40


@given(query=st.integers(1, 60), support=st.integers(1, 60))
def test_by_position_slices_meet_those_at_the_same_height(query, support):
    """Their middles differ by half a slice of the support and half a part of the 100 at most."""
    shown = shown_slices(np.ones((support, 1, 1), bool), 100, "position")
    for part, position in zip(query_parts(query, 100), shown, strict=True):
        for k in part:
            assert abs((k + 0.5) / query - (position + 0.5) / support) <= 0.5 / support + 0.5 / 100 + 1e-9


def test_no_part_and_nothing_to_show_are_errors():
    with pytest.raises(ValueError, match="`parts`=0 must be at least 1"):
        query_parts(9, 0)
    with pytest.raises(ValueError, match="`parts`=0 must be at least 1"):
        support_slices(volume(3), 0)
    with pytest.raises(ValueError, match="`parts`=0 must be at least 1"):
        shown_slices(volume(3), 0, "position")
    for match in ("extent", "position"):
        with pytest.raises(ValueError, match="the mask is empty"):
            shown_slices(volume(), 3, match)
    with pytest.raises(ValueError, match="none of the 3 slices that are shown has foreground"):
        shown_slices(volume(0, 4), 3, "position")
    with pytest.raises(ValueError, match="unknown `match` 'mask'; known: extent, position"):
        shown_slices(volume(3), 3, "mask")


def test_windows_lie_within_the_image_and_small_images_in_their_middle():
    assert window_start((0, 0), (20, 30), (8, 10)) == [0, 0]
    assert window_start((19, 29), (20, 30), (8, 10)) == [12, 20]
    assert window_start((10, 15), (20, 30), (9, 11)) == [6, 10]  # pixel 10 in the middle of 6..14
    assert window_start((3, 2), (5, 30), (9, 10)) == [-2, 0]
    x = np.arange(1, 13).reshape(1, 3, 4)
    cut = window(x, (-1, 2), (5, 3))
    expected = np.zeros((1, 5, 3), int)
    expected[0, 1:4, :2] = x[0, :, 2:]
    assert np.array_equal(cut, expected)


def test_labels_of_the_previous_stage_are_channels():
    generator = np.random.default_rng(0)
    data, previous = generator.random((2, 3, 4, 5)), generator.integers(0, 3, (3, 4, 5))
    assert np.array_equal(image_slice((data, None, None), 1), data[:, 1].astype(np.float32))
    image = image_slice((data, None, previous), 1, (1, 2))
    assert image.shape == (4, 4, 5)
    assert np.array_equal(image[2:], np.stack([previous[1] == 1, previous[1] == 2]).astype(np.float32))


def lay_out(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def test_scans_are_grouped_by_nnunets_names(tmp_path):
    lay_out(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a.nrrd", "c_12_0000.nrrd", "notes.txt")
    files = {name: str(tmp_path / name) for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a.nrrd", "c_12_0000.nrrd")}
    b = Scan("b", ".nii.gz", (files["b_0000.nii.gz"], files["b_0001.nii.gz"]))
    scans, failures = scans_in(tmp_path, ENDINGS)
    assert scans == [b, Scan("c_12", ".nrrd", (files["c_12_0000.nrrd"],))]
    assert failures == [Failure("a.nrrd", "has no channel number; a scan's file is named a_0000.nrrd")]
    assert scan_of(files["b_0000.nii.gz"], ENDINGS) == b
    assert scan_of(files["a.nrrd"], ENDINGS).files == (files["a.nrrd"],)


def test_names_with_brackets_are_names(tmp_path):
    lay_out(tmp_path, "s[1]_0000.nrrd", "s[1]_0001.nrrd", "s1_0000.nrrd")
    assert len(scan_of(tmp_path / "s[1]_0000.nrrd", ENDINGS).files) == 2


def test_what_is_no_scan_is_said(tmp_path):
    lay_out(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*c_0000"):
        scan_of(tmp_path / "c_0000.nii.gz", ENDINGS)
    with pytest.raises(ValueError, match=r"is channel 0001 of b; give the first, b_0000\.nii\.gz"):
        scan_of(tmp_path / "b_0001.nii.gz", ENDINGS)
    with pytest.raises(
        ValueError, match=r"notes\.txt has an ending that the model's reader does not read; it reads \.nii"
    ):
        scan_of(tmp_path / "notes.txt", ENDINGS)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        scans_in(tmp_path / "nowhere", ENDINGS)
    with pytest.raises(ValueError, match=r"has no scan: no file that ends with \.nrrd"):
        scans_in(tmp_path, [".nrrd"])


def test_geometry_is_compared_within_the_rounding_of_headers():
    one = {"spacing": [1.0, 1.0, 2.0], "sitk_stuff": {"origin": (0, 5, 0), "direction": (1, 0, 0, 1)}}
    near = {"spacing": [1.00005, 1.0, 2.0], "sitk_stuff": {"origin": (0, 5.0001, 0), "direction": (1, 0, 0, 1)}}
    other = {"spacing": [1.0, 1.0, 2.1], "sitk_stuff": {"origin": (0, 5, 3), "direction": (1, 0, 0, 1)}}
    assert geometry_differences(one, near) == []
    assert geometry_differences(one, other) == [
        "origin [0, 5, 0] and [0, 5, 3]",
        "spacing [1.0, 1.0, 2.0] and [1.0, 1.0, 2.1]",
    ]
