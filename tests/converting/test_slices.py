"""Volumes from slices: the DICOM series and label pictures of CHAOS."""

import locale

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.cli.main import main
from nnunet_ext.converting.run import renumbered
from nnunet_ext.converting.sets import SETS
from nnunet_ext.converting.slices import read_series
from nnunet_ext.utils.locales import kept_locale
from tests.helpers.label_files import write
from tests.helpers.public_sets import (
    CHAOS_VALUES,
    DIRECTION,
    ORIGIN,
    SHAPE,
    SPACING,
    Slices,
    chaos,
    label_map,
    scan,
)

BACKWARDS = Slices(instances=range(SHAPE[0], 0, -1))
MIXED = Slices(instances=(3, 1, 5, 2, 4), one_series=True)


@pytest.mark.parametrize("slices", [Slices(), BACKWARDS, MIXED], ids=["forwards", "backwards", "mixed"])
def test_slices_lie_where_their_headers_say(slices, tmp_path):
    """Names and instance numbers run along the position, against it, or in no order."""
    files = slices.write(tmp_path, scan())
    volume, order = read_series(sorted(files))
    assert order == files
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume), scan())
    assert volume.GetOrigin() == pytest.approx(ORIGIN)
    assert volume.GetSpacing() == pytest.approx(SPACING)
    assert volume.GetDirection() == pytest.approx(DIRECTION)


def test_reading_leaves_the_locale_alone(tmp_path):
    files = Slices().write(tmp_path, scan())
    with kept_locale():
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        read_series(files)
        assert locale.setlocale(locale.LC_CTYPE) == "C.UTF-8"


def test_it_agrees_with_the_standards_definition_of_positions(tmp_path):
    """Voxel by voxel, from the headers as another library reads them: PS3.3, equation C.7.6.2.1-1."""
    pydicom = pytest.importorskip("pydicom")
    files = MIXED.write(tmp_path, scan())
    volume, _ = read_series(sorted(files))
    for file in files:
        data = pydicom.dcmread(file)
        along_row, along_column = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, data.PixelSpacing)
        for row, column in ((0, 0), (3, 11), (11, 2)):
            place = np.array(data.ImagePositionPatient, float)
            place += column * between_columns * along_row + row * between_rows * along_column
            index = volume.TransformPhysicalPointToIndex(place)
            assert volume.GetPixel(index) == data.pixel_array[row, column]


@pytest.mark.parametrize("slices", [Slices(), BACKWARDS, MIXED], ids=["forwards", "backwards", "mixed"])
def test_label_pictures_go_with_the_slices_of_their_names(slices, tmp_path):
    root = chaos(tmp_path / "source", slices=slices)
    target = tmp_path / "Dataset702_CHAOS"
    assert main(["convert", "chaos-mr", str(root), "-o", str(target)]) == 0
    for case in (1, 2):
        image, labels = (
            sitk.ReadImage(str(target / folder / f"chaos_{case}{end}.nii.gz"))
            for folder, end in (("imagesTr", "_0000"), ("labelsTr", ""))
        )
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(case))
        expected = np.searchsorted((0, *CHAOS_VALUES), label_map(CHAOS_VALUES, case))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected)
        assert image.GetDirection() == pytest.approx(DIRECTION, abs=1e-6)
        assert image.GetSpacing() == pytest.approx(SPACING)
        assert image.GetOrigin() == pytest.approx(ORIGIN)


def test_a_single_slice_is_no_series(tmp_path):
    with pytest.raises(ValueError, match=r"IMG-0002-00001.dcm is the only slice of its series"):
        read_series(Slices(positions=(0,), instances=(1,)).write(tmp_path, scan()[:1]))


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (Slices(positions=(0, 1, 2, 4, 5)), "IMG-0002-0000[34].dcm lies .* mm from its place; a slice is missing"),
        (Slices(positions=(0, 1, 1, 2, 3)), "not equally spaced"),
        (Slices(positions=(2, 2, 2, 2, 2)), "not equally spaced"),
    ],
)
def test_a_gap_or_a_copy_is_found(slices, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_series(slices.write(tmp_path, scan()))


def test_a_slice_of_another_series_is_found(tmp_path):
    files = Slices().write(tmp_path, scan())
    (other,) = Slices(positions=(5,), instances=(6,)).write(tmp_path, scan(0, (1, 12, 15)))
    with pytest.raises(ValueError, match=r"IMG-0002-00006.dcm differs from IMG-0002-00001.dcm in size or orientation"):
        read_series([*files, other])
    files[0].write_text("nothing")
    with pytest.raises(ValueError, match=r"00001.dcm cannot be read as DICOM"):
        read_series(files)


def change_of(root, case=1):
    ground = root / f"Train_Sets/MR/{case}/T2SPIR/Ground"
    first = sorted(ground.iterdir())[0]
    return {
        "missing": first.unlink,
        "extra": lambda: write(ground / "IMG-0002-00009.png", np.zeros(SHAPE[1:], np.uint8)),
        "colours": lambda: write(first, np.zeros((*SHAPE[1:], 3), np.uint8)),
        "value": lambda: write(first, np.full(SHAPE[1:], 71, np.uint8)),
        "size": lambda: [write(path, np.zeros((4, 4), np.uint8)) for path in ground.iterdir()],
        "one size": lambda: write(first, np.zeros((4, 4), np.uint8)),
        "damaged": lambda: first.write_text("nothing"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "slices without a label picture of the same name: IMG-0002-00001"),
        ("extra", "no slice for a label picture of the same name: IMG-0002-00009"),
        ("colours", "is not a grey picture"),
        ("value", "has the values 71; expected 0, 55 to 70 (liver), 110 to 135 (right_kidney)"),
        ("size", "has the size (5, 4, 4), its image (5, 12, 14)"),
        ("one size", "the label pictures differ in size"),
        ("damaged", "cannot be read; download it again"),
    ],
)
def test_label_pictures_that_do_not_fit_are_named(change, message, tmp_path, capsys):
    root = chaos(tmp_path / "source", unlabelled=0)
    change_of(root)[change]()
    assert main(["convert", "chaos-mr", str(root), "-o", str(tmp_path / "Dataset702_CHAOS")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("chaos_1: ")
    assert message in error
    assert not (tmp_path / "Dataset702_CHAOS").exists()


def test_the_ends_of_each_range_belong_to_it(tmp_path):
    """All values from 0 to 255 with the label that the owners' ranges give, or none."""
    expected = {0: 0}
    for number, (low, high) in enumerate(((55, 70), (110, 135), (175, 200), (240, 255)), start=1):
        expected |= dict.fromkeys(range(low, high + 1), number)
    for value in range(256):
        picture = np.full((1, 2, 2), value, np.int32)
        if value in expected:
            assert (renumbered(picture, SETS["chaos-mr"].values, tmp_path) == expected[value]).all()
        else:
            with pytest.raises(ValueError, match=f"has the values {value}; expected 0, 55 to 70 "):
                renumbered(picture, SETS["chaos-mr"].values, tmp_path)
