import numpy as np
import pytest

from nnunet_ext.compare.metrics import case_scores

SPACING = (2.0, 1.0, 1.0)


def maps(*, truth=(), prediction=(), shape=(8, 12, 12)):
    """Two segmentation maps with boxes (label, start, size)."""
    result = []
    for boxes in (truth, prediction):
        mask = np.zeros(shape, dtype=np.uint8)
        for label, start, size in boxes:
            mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = label
        result.append(mask)
    return result


def scores(masks, labels=None, ignore_label=None, tolerance=2.0):
    labels = labels or {"a": 1}
    tolerances = dict.fromkeys(labels, tolerance)
    return case_scores(*masks, SPACING, labels=labels, tolerances=tolerances, ignore_label=ignore_label)


def test_dice_and_volume_of_overlapping_boxes():
    """64 and 32 voxels of 2 mm^3, 32 in common."""
    masks = maps(truth=[(1, (1, 1, 1), (4, 4, 4))], prediction=[(1, (1, 1, 1), (4, 4, 2))])
    result = scores(masks)["a"]
    assert result["dice"] == pytest.approx(2 * 32 / 96)
    assert result["volume_difference"] == pytest.approx(-0.064)
    assert result["volume_error"] == pytest.approx(0.064)
    assert (result["truth_voxels"], result["predicted_voxels"]) == (64, 32)


@pytest.mark.parametrize("missing", ["truth", "prediction"])
def test_one_sided_emptiness(missing):
    """Dice and NSD are 0, distances are the image's diagonal, the volume counts."""
    other = "prediction" if missing == "truth" else "truth"
    result = scores(maps(**{other: [(1, (1, 1, 1), (2, 2, 2))]}))["a"]
    assert result["dice"] == result["nsd"] == 0
    assert result["hd95"] == result["assd"] == pytest.approx(np.sqrt((8 * 2) ** 2 + 12**2 + 12**2))
    assert result["volume_error"] == pytest.approx(0.016)


def test_both_empty_is_nan():
    result = scores(maps())["a"]
    assert all(np.isnan(result[key]) for key in ("dice", "nsd", "hd95", "assd", "volume_difference", "volume_error"))


def test_a_region_is_the_union_of_its_labels():
    """The labels change places within the region: the region is right, both labels are wrong."""
    one, other = (1, 1, 1), (1, 1, 4)
    truth = [(1, one, (3, 3, 3)), (2, other, (3, 3, 3))]
    prediction = [(2, one, (3, 3, 3)), (1, other, (3, 3, 3))]
    result = scores(maps(truth=truth, prediction=prediction), {"whole": (1, 2), "core": (2,), "a": 1})
    assert result["whole"]["dice"] == result["whole"]["nsd"] == 1
    assert result["whole"]["hd95"] == 0
    assert result["core"]["dice"] == result["a"]["dice"] == 0


def test_ignored_voxels_count_in_nothing():
    """Predictions on voxels with the ignore label change no score."""
    truth = [(1, (1, 1, 1), (4, 4, 4)), (3, (0, 0, 8), (8, 12, 4))]
    clean = [(1, (1, 1, 1), (4, 4, 4))]
    for prediction in (clean, [*clean, (1, (1, 1, 9), (4, 4, 3))]):
        result = scores(maps(truth=truth, prediction=prediction), ignore_label=3)["a"]
        assert result["dice"] == result["nsd"] == 1
        assert result["hd95"] == result["volume_error"] == 0


def test_a_single_slice_is_measured_in_its_plane():
    """nnU-Net gives natural images a third axis with a spacing of 999."""
    truth, prediction = (np.zeros((1, 20, 20), dtype=np.uint8) for _ in range(2))
    truth[0, 5:15, 5:15] = 1
    prediction[0, 5:15, 8:18] = 1
    result = case_scores(truth, prediction, (999, 1, 1), labels={"a": 1}, tolerances={"a": 2.0})["a"]
    assert result["hd95"] == pytest.approx(3)
    assert 0.5 < result["nsd"] < 1
    assert (
        case_scores(truth, truth[:, :, ::-1].copy(), (999, 1, 1), labels={"a": 1}, tolerances={"a": 2.0})["a"][
            "volume_error"
        ]
        == 0
    )


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) differs from the label's \(2, 3, 3\)"):
        scores([np.zeros((2, 3, 3), dtype=int), np.zeros((2, 3, 4), dtype=int)])
