"""Pictures and figures for papers: colour images, planes, enlargements, files."""

import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.report.files import figure_files
from nnunet_ext.compare.report.overlays import Scene, _image, paint_scene, pictures
from nnunet_ext.compare.report.planes import slice_text
from nnunet_ext.compare.report.svg import BAND, INK, draw
from nnunet_ext.nnunet.geometry import grid_of

LABELS = LabelSet({"nucleus": 1}, None, ".png", "NaturalImage2DIO")


def scene(shape, window, image=None):
    truth = np.zeros(shape, int)
    truth[4:8, 4:8] = 1
    image = np.full(shape, 0.5) if image is None else image
    dice = {"A": "90.00", "B": "80.00"}
    return Scene(
        "best",
        "case_1",
        "CT, axial slice 3 of 9",
        image,
        True,
        truth,
        {"A": truth, "B": 1 - truth},
        dice,
        (1, 1),
        window,
    )


def test_colour_images_are_shown_in_colour(tmp_path):
    image = np.zeros((6, 5, 3), np.uint8)
    image[..., 0], image[2, 3, 1] = 255, 51
    file = tmp_path / "case_0000.png"
    io.imsave(file, image, check_contrast=False)
    _, properties = NaturalImage2DIO().read_images([str(file)])
    shown = _image(NaturalImage2DIO(), file, 0, 0, grid_of(properties, (1, 6, 5)))
    assert shown.shape == (6, 5, 3)
    assert shown[2, 3].tolist() == pytest.approx([1, 0.2, 0])
    assert slice_text("colour image", properties, grid_of(properties, (1, 6, 5)), 0, 0) == "colour image"


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), "CT, axial slice 2 of 4"),
        ((0, 0, 1, 1, 0, 0, 0, 1, 0), "CT, sagittal slice 2 of 4"),
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), "CT, coronal slice 2 of 4"),
        ((1, 0, 0, 0, 0.7071, 0.7071, 0, -0.7071, 0.7071), "CT, oblique slice 2 of 4"),
    ],
)
def test_planes_are_those_of_the_body(tmp_path, direction, expected):
    """SimpleITK's images have the axes x (to the left), y (to the back) and z (to the head)."""
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(tmp_path / "case_0000.nii.gz"))
    array, properties = SimpleITKIO().read_images([str(tmp_path / "case_0000.nii.gz")])
    assert slice_text("CT", properties, grid_of(properties, array.shape[1:]), 0, 1) == expected


def test_a_small_label_is_enlarged_beside_its_whole_slice():
    small, whole = scene((40, 30), (slice(2, 10), slice(2, 10))), scene((12, 12), (slice(0, 11), slice(0, 12)))
    assert [each.title for each in pictures(small, LABELS)] == ["Whole slice", "A", "B"]
    assert [each.title for each in pictures(whole, LABELS)] == ["A", "B"]
    row = paint_scene(small, LABELS)
    assert [axes.get_title() or axes.texts[0].get_text() for axes in row.axes] == [
        *("case_1: CT, axial slice 3 of 9", "truth", "A, Dice 90.00", "B, Dice 80.00")
    ]
    (frame,) = row.axes[0].patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (1.5, 1.5, 8, 8)
    assert row.axes[1].get_images()[0].get_array().shape == (8, 8)


def test_figures_are_files_in_real_colours():
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvspan(0, 1, color=BAND)
        axes.scatter([0, 1], [0, 1], color=INK).set_urls(["tip:a", "tip:b"])

    plot = draw("plot", "Title", "Text", (3, 2), paint)
    assert "var(--ink)" in plot.svg
    files = figure_files([plot], [scene((40, 30), (slice(2, 10), slice(2, 10)))], LABELS)
    assert sorted(files) == ["pictures-best.pdf", "pictures-best.svg", "plot.pdf", "plot.svg"]
    assert all(files[name].startswith(b"%PDF") for name in files if name.endswith(".pdf"))
    svg = files["plot.svg"].decode()
    assert "#1d2129" in svg  # the page's ink in its light theme
    assert "tip:" not in svg
    assert re.search("#01[0-9]{2}01", svg) is None
    assert files == figure_files([replace(plot)], [scene((40, 30), (slice(2, 10), slice(2, 10)))], LABELS)
