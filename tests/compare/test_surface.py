"""Surface distances: shapes with known answers, DeepMind's own package, MONAI."""

import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_ext.compare import nearest
from nnunet_ext.compare.metrics import case_scores
from nnunet_ext.compare.surface import (
    element_areas,
    mean_surface_distance,
    normalised_surface_dice,
    robust_hausdorff,
    surfaces,
)

SPACINGS = [(1.0, 1.0, 1.0), (1.0, 2.0, 5.0), (0.7, 3.0, 0.9)]

MONAI_WARNS = pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # of an argument that it gives itself


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def smooth_masks(generator, shape):
    return [ndimage.gaussian_filter(generator.standard_normal(shape), 2) > 0.02 for _ in range(2)]


def test_area_of_a_box():
    """Faces between the voxels' centres, edges cut at 45 degrees, corners cut by a triangle."""
    a, b, c = 4, 5, 6
    mask = box((10, 10, 10), (2, 3, 1), (a, b, c))
    faces = 2 * ((a - 1) * (b - 1) + (b - 1) * (c - 1) + (a - 1) * (c - 1))
    edges = 4 * ((a - 1) + (b - 1) + (c - 1)) * np.sqrt(0.5)
    corners = 8 * np.sqrt(3) / 8
    truth, _ = surfaces(mask, mask, (1, 1, 1))
    assert truth.areas.sum() == pytest.approx(faces + edges + corners)


def test_length_of_a_rectangle():
    mask = box((9, 9), (1, 2), (4, 5))
    truth, _ = surfaces(mask, mask, (2, 3))
    assert truth.areas.sum() == pytest.approx(2 * 3 * 2 + 2 * 4 * 3 + 4 * np.hypot(2, 3) / 2)


def test_a_shifted_box():
    """Moved by 3 voxels of 2 mm: a sixth of the surface is 6 mm away, so HD95 is 6 and NSD is 1 from 6 mm on."""
    one, other = (box((30, 20, 20), (start, 5, 5), (10, 10, 10)) for start in (5, 8))
    pair = surfaces(one, other, (2.0, 1.0, 1.0))
    assert robust_hausdorff(*pair) == pytest.approx(6)
    assert normalised_surface_dice(*pair, 6) == 1
    assert 0.6 < normalised_surface_dice(*pair, 5.9) < 1


def test_a_wider_box_by_hand():
    """A square of 4 in one of 6 voxels: every element of the inner is 1 mm away, of the outer 1 mm but the corners."""
    inner, outer = box((10, 10), (3, 3), (4, 4)), box((10, 10), (2, 2), (6, 6))
    pair = surfaces(inner, outer, (1.0, 1.0))
    corners, lengths = 4 * np.sqrt(0.5), (4 * 3 + 4 * np.sqrt(0.5), 4 * 5 + 4 * np.sqrt(0.5))
    assert normalised_surface_dice(*pair, 0.9) == 0
    assert normalised_surface_dice(*pair, 1) == pytest.approx(1 - corners / sum(lengths))
    # The corners are 2.83 of the outer 22.8 mm, more than 5%: HD95 is their distance.
    assert robust_hausdorff(*pair) == pytest.approx(np.sqrt(2))


def test_equal_masks_touch_the_image_border():
    mask = np.ones((4, 5, 6), dtype=bool)
    pair = surfaces(mask, mask, (1, 1, 1))
    assert normalised_surface_dice(*pair, 0) == 1
    assert robust_hausdorff(*pair) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of names that SciPy 2 drops
@pytest.mark.parametrize("shape", [(20, 24, 28), (40, 50)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_deepminds_package(shape, spacing):
    surface_distance = pytest.importorskip("surface_distance")
    spacing = spacing[: len(shape)]
    generator = np.random.default_rng(0)
    for _ in range(3):
        masks = smooth_masks(generator, shape)
        pair, theirs = surfaces(*masks, spacing), surface_distance.compute_surface_distances(*masks, spacing)
        for tolerance in (0, 1, 2.5):
            expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert normalised_surface_dice(*pair, tolerance) == pytest.approx(expected)
        means = surface_distance.compute_average_surface_distance(theirs)
        weights = [theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()]
        assert mean_surface_distance(*pair) == pytest.approx(np.average(means, weights=weights))
        for percent in (50, 95, 100):
            expected = surface_distance.compute_robust_hausdorff(theirs, percent)
            assert robust_hausdorff(*pair, percent) == pytest.approx(expected)


@pytest.fixture(scope="module")
def monai_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optional packages
        return pytest.importorskip("monai.metrics")


def one_hot(mask):
    return torch.from_numpy(np.stack([~mask, mask]))[None].float()


@MONAI_WARNS
@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_monai(made_results, monai_metrics, spacing):
    """Dice and, by surface elements, NSD, on real labels; a tolerance that no distance comes near.

    MONAI's Hausdorff distance counts voxels of the border instead of surface: see the next test.
    """
    truth, prediction = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(made_results.truth(case)))) for case in made_results.cases[:2]
    )
    shape = np.minimum(truth.shape, prediction.shape)
    truth, prediction = (mask[: shape[0], : shape[1], : shape[2]] for mask in (truth, prediction))
    labels: dict = {"a": 1, "both": (1, 2)}
    scores = case_scores(truth, prediction, spacing, labels=labels, tolerances=dict.fromkeys(labels, 2.345))
    for name, values in (("a", [1]), ("both", [1, 2])):
        pair = [one_hot(np.isin(mask, values)) for mask in (prediction, truth)]
        dice = monai_metrics.compute_dice(*pair, include_background=False).item()
        nsd = monai_metrics.compute_surface_dice(*pair, [2.345], spacing=spacing, use_subvoxels=True).item()
        assert scores[name]["dice"] == pytest.approx(dice, abs=1e-6)
        assert scores[name]["nsd"] == pytest.approx(nsd, abs=1e-6)


@MONAI_WARNS
def test_hd95_agrees_with_monai_where_the_definitions_meet(monai_metrics):
    """Moved boxes: border voxels and surface elements are the same distance away, in the same proportions."""
    one, other = (box((40, 30, 30), (start, 5, 5), (16, 16, 16)) for start in (5, 9))
    for spacing in SPACINGS:
        expected = monai_metrics.compute_hausdorff_distance(
            one_hot(other), one_hot(one), percentile=95, spacing=spacing
        ).item()
        assert robust_hausdorff(*surfaces(one, other, spacing)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_distances_are_those_of_a_distance_transform(spacing):
    """Near and far, dense and sparse masks: results of the look-up, the k-d tree and the sparse codes."""
    generator = np.random.default_rng(0)
    dense = smooth_masks(generator, (24, 30, 20))
    far = [box((60, 50, 40), (2, 3, 4), (5, 6, 7)), box((60, 50, 40), (50, 30, 20), (3, 2, 9))]
    stray = [far[0] | box((60, 50, 40), (59, 49, 39), (1, 1, 1)), far[0] | box((60, 50, 40), (0, 0, 39), (1, 1, 1))]
    for truth, prediction in (dense, far, stray):
        borders = []
        for mask in (truth, prediction):
            padded = np.pad(mask, 1)
            total = sum(
                padded[tuple(slice(c, c + n + 1) for c, n in zip(corner, mask.shape, strict=True))].astype(int)
                for corner in np.ndindex(2, 2, 2)
            )
            borders.append((total > 0) & (total < 8))
        for surface, own, other in zip(surfaces(truth, prediction, spacing), borders, borders[::-1], strict=True):
            expected = ndimage.distance_transform_edt(~other, sampling=spacing)[own]
            assert surface.distances == pytest.approx(np.sort(expected))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    "costs",
    [{}, {"_LOOK_UP_SHARE": np.inf}, {"_CELL": 0}, {"_QUERY": 0, "_TARGET": 0}],
    ids=lambda costs: str([*costs]),
)
def test_distances_are_those_of_all_pairs(monkeypatch, axes, costs):
    """Whichever way is taken, near and far, through anisotropic voxels, and for points among the targets."""
    for name, value in costs.items():
        monkeypatch.setattr(nearest, name, value)
    generator = np.random.default_rng(0)
    for spacing in SPACINGS:
        for extent, away in ((12, 0), (12, 3), (30, 25)):
            points, targets = (np.unique(generator.integers(0, extent, (60, axes)), axis=0) for _ in range(2))
            targets = targets + away
            steps = (targets[None] - points[:, None]) * np.array(spacing[:axes])
            expected = np.sqrt((steps**2).sum(axis=2)).min(axis=1)
            found = nearest.nearest_distances(points, targets, spacing[:axes])
            assert found == pytest.approx(expected, rel=1e-14, abs=0)


def test_areas_are_those_of_complementary_cells_and_scale_with_the_spacing():
    areas = element_areas((1.0, 2.0, 5.0))
    assert areas[0] == areas[255] == 0
    assert np.allclose(areas, areas[::-1])
    assert np.allclose(element_areas((2.0, 4.0, 10.0)), 4 * areas)


def test_wrong_spacing_is_named():
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"`spacing`=\(1, 1\) must agree"):
        surfaces(mask, mask, (1, 1))
