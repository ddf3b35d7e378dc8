import itertools
import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.ops import native
from nnunet_ext.supervoxels import (
    SupervoxelParameters,
    cached_supervoxels,
    default_min_size,
    numpy_segmentation,
    supervoxel_cache,
    supervoxels,
)
from nnunet_ext.supervoxels.graph_segmentation import BACKENDS, distance_factor, grid_offsets, segment_grid
from nnunet_ext.supervoxels.supervoxels import foreground

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "extension" and native.native_library() is None:
        pytest.skip("the C extension was not built")
    return request.param


def usable_backends():
    return [b for b in BACKENDS if b == "numpy" or native.native_library() is not None]


def direct(image, mask, spacing, k, min_size, connectivity):
    """The paper's algorithm, voxel by voxel, on (M, D, H, W); components are sets."""
    shape = mask.shape
    voxels = [p for p in itertools.product(*map(range, shape)) if mask[p]]
    differing = {6: 1, 18: 2, 26: 3}[connectivity]
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0) and np.count_nonzero(o) <= differing]
    edges = []
    for o, p in itertools.product(offsets, voxels):
        q = tuple(a + b for a, b in zip(p, o, strict=True))
        if all(0 <= a < n for a, n in zip(q, shape, strict=True)) and mask[q]:
            difference = [np.float32(m[q]) - np.float32(m[p]) for m in image]
            norm = abs(difference[0]) if len(image) == 1 else np.sqrt(sum(d * d for d in difference))
            relative = [s / min(spacing) for d, s in zip(o, spacing, strict=True) if d]
            factor = np.float32((sum(s * s for s in relative) / len(relative)) ** 0.5)
            edges.append((float(norm * factor), len(edges), p, q))
    component = {p: {p} for p in voxels}
    internal = dict.fromkeys(voxels, 0.0)  # Int of the component that the voxel is in

    def join(p, q):
        joined = component[p] | component[q]
        for voxel in joined:
            component[voxel] = joined
        return joined

    for w, _, p, q in sorted(edges):
        a, b = component[p], component[q]
        if a is not b and w <= min(internal[p] + k / len(a), internal[q] + k / len(b)):
            for voxel in join(p, q):
                internal[voxel] = w
    for _, _, p, q in sorted(edges):
        if component[p] is not component[q] and min(len(component[p]), len(component[q])) < min_size:
            join(p, q)
    labels, names = np.zeros(shape, np.int32), {}
    for p in voxels:
        labels[p] = names.setdefault(id(component[p]), len(names) + 1)
    return labels


def random_image(rng, shape, modalities=1, levels=None):
    image = rng.uniform(0, 255, (modalities, *shape))
    return (image if levels is None else np.floor(image * levels / 255.01)).astype(np.float32)


def pairs(labels):
    """The partition, whatever the segments are called."""
    return {frozenset(np.flatnonzero(labels == i)) for i in range(1, labels.max() + 1)}


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.8, 1), (0.5, 0.5, 2)])
@pytest.mark.parametrize(("k", "min_size"), [(0, 1), (1 / 255, 5), (60, 1), (60, 9), (1500, 4)])
@pytest.mark.parametrize("modalities", [1, 3])
def test_equals_the_papers_algorithm(backend, connectivity, spacing, k, min_size, modalities, monkeypatch):
    monkeypatch.setattr(numpy_segmentation, "_BATCH", 40)
    rng = np.random.default_rng(modalities)
    for levels in (None, 4):
        image = random_image(rng, (4, 5, 6), modalities, levels)
        mask = rng.random(image.shape[1:]) < 0.9
        options = {"min_size": min_size, "connectivity": connectivity}
        found = segment_grid(image, mask, spacing, scale=k, **options, backend=backend)
        np.testing.assert_array_equal(found, direct(image, mask, spacing, k, **options))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    modalities=st.integers(1, 2),
    levels=st.sampled_from([None, 2, 6]),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 3.0])] * 3),
    k=st.floats(0, 2000),
    min_size=st.integers(1, 30),
    connectivity=st.sampled_from([6, 18, 26]),
)
def test_any_volume_equals_the_papers_algorithm(seed, shape, modalities, levels, spacing, k, min_size, connectivity):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.choice([0.5, 0.9, 1])
    image, options = random_image(rng, shape, modalities, levels), {"min_size": min_size, "connectivity": connectivity}
    expected = direct(image, mask, spacing, k, **options)
    for backend in usable_backends():
        found = segment_grid(image, mask, spacing, scale=k, **options, backend=backend)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(native.native_library() is None, reason="the C extension was not built")
@pytest.mark.parametrize("k", [1 / 255, 50, 3000])
def test_backends_agree_on_many_batches(k):
    rng = np.random.default_rng(0)
    image = (random_image(rng, (24, 96, 96)) + np.linspace(0, 200, 96, dtype=np.float32)).round()
    extension, plain = (
        supervoxels(image, (2, 1, 1), min_size=40, scale=k, threshold=-1, connectivity=18, backend=b) for b in BACKENDS
    )
    assert extension.max() > 1
    np.testing.assert_array_equal(extension, plain)


def test_without_a_library_numpy_segments(monkeypatch):
    monkeypatch.setattr(native, "native_library", lambda: None)
    assert supervoxels(np.zeros((2, 2, 2)), SPACING).max() == 1
    with pytest.raises(ValueError, match="`backend`='extension' needs the C extension, which was not built"):
        supervoxels(np.zeros((2, 2, 2)), SPACING, backend="extension")


def test_constant_image_is_one_segment(backend):
    for value, modalities in ((0, 1), (-7.5, 2)):
        labels = supervoxels(np.full((modalities, 3, 8, 9), value), SPACING, backend=backend)
        assert labels.dtype == np.int32
        assert (labels == 1).all()


def test_two_plateaus_are_two_segments(backend):
    image = np.full((6, 10, 10), 100.0)
    image[:, :, 5:] = 200
    image[0, 0, 0] = 0  # black, for the scale
    labels = supervoxels(image, SPACING, min_size=1, backend=backend)
    assert labels[0, 0, 0] == 0
    assert (labels.ravel()[1:] == np.where(image > 150, 2, 1).ravel()[1:]).all()


def test_partition_does_not_depend_on_direction_or_names(backend):
    image = np.random.default_rng(3).permutation(6 * 7 * 8).reshape(6, 7, 8).astype(float)
    image += np.random.default_rng(4).random(image.shape)  # all differences are distinct
    for axis, k in itertools.product(range(3), (1, 200)):
        arguments = {"spacing": (2, 1, 1), "min_size": 10, "scale": k, "threshold": -1, "backend": backend}
        labels = supervoxels(image, **arguments)
        flipped = np.flip(supervoxels(np.flip(image, axis), **arguments), axis)
        assert pairs(labels) == pairs(flipped)
        names = np.random.default_rng(5).permutation(labels.max()) + 1
        assert pairs(names[labels - 1]) == pairs(labels)
        np.testing.assert_array_equal(labels, supervoxels(3 * image - 50, **arguments))


def test_labels_are_consecutive_in_scan_order_and_the_same_each_time(backend):
    image = np.random.default_rng(0).normal(size=(10, 20, 20)).round(1)
    labels = supervoxels(image, SPACING, backend=backend)
    values, first = np.unique(labels[labels > 0], return_index=True)
    assert list(values) == list(range(1, labels.max() + 1))
    assert list(first) == sorted(first)
    assert all((supervoxels(image, SPACING, backend=backend) == labels).all() for _ in range(3))


def test_input_stays_as_it_was_and_any_layout_serves(backend):
    image = np.random.default_rng(0).normal(size=(8, 12, 10)).astype(np.float16)
    image.flags.writeable = False
    expected = supervoxels(image, SPACING, backend=backend)
    np.testing.assert_array_equal(supervoxels(np.asfortranarray(image), SPACING, backend=backend), expected)
    np.testing.assert_array_equal(supervoxels(image[None].tolist(), SPACING, backend=backend), expected)


def test_weights_grow_with_the_distance(backend):
    assert all(distance_factor(o, (2.5, 2.5, 2.5)) == 1 for o in grid_offsets(26))
    assert [round(distance_factor(o, (3, 1, 1)) ** 2, 9) for o in ((1, 0, 0), (0, 1, -1), (1, 0, 1))] == [9, 1, 5]
    # Each voxel has two neighbours that differ from it alike: it joins the nearer one.
    image = np.array([[[0.0], [100]], [[100], [200]]])
    for spacing, expected in (((3, 1, 1), [1, 1, 2, 2]), ((1, 3, 1), [1, 2, 1, 2])):
        labels = supervoxels(image, spacing, min_size=2, threshold=-1, backend=backend)
        assert labels.ravel().tolist() == expected


def test_foreground_is_the_largest_part_of_each_slice_without_holes():
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 0, 1:6, 1:6] = 200
    image[0, 0, 3, 3] = 0  # a hole
    image[0, 0, 6, 6] = 200  # touches in a corner
    image[0, 1, 7, :3] = 11
    image[0, 1, 0, 0] = 10  # not above the threshold
    expected = np.zeros((3, 8, 8), bool)
    expected[0, 1:6, 1:6] = expected[1, 7, :3] = True
    np.testing.assert_array_equal(foreground(image, 10), expected)
    expected[0, 6, 6] = True
    np.testing.assert_array_equal(foreground(image, 10, 26), expected)


def test_any_modality_makes_foreground():
    image = np.zeros((2, 1, 4, 4))
    image[0, 0, :2], image[1, 0, 2:] = 1, 1
    assert (supervoxels(image, SPACING, min_size=1) == np.repeat([1, 2], 8).reshape(1, 4, 4)).all()


def test_least_size_follows_the_volume():
    assert default_min_size((60, 256, 256)) == pytest.approx(5000, rel=0.01)
    assert default_min_size((12, 256, 256)) == pytest.approx(1000, rel=0.01)
    assert default_min_size((4, 4, 4)) == 50


def hippocampus(name="hippocampus_001"):
    folder = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{name}_0000.nii.gz"))
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


@pytest.mark.parametrize("name", ["hippocampus_001", "hippocampus_042"])
def test_real_scan(backend, name):
    image, spacing = hippocampus(name)
    labels = supervoxels(image, spacing, backend=backend)
    sizes = np.bincount(labels.ravel())[1:]
    scaled = (255 * ((image - float(image.min())) / float(image.max() - image.min()))).astype(np.float32)
    np.testing.assert_array_equal(labels > 0, foreground(scaled[None], 10))
    assert 30 <= len(sizes) <= 300
    assert sizes.min() >= default_min_size(image.shape)
    assert sizes.max() < image.size / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4))}, r"`image` must have the shape \(D, H, W\) or \(M, D, H, W\).*got \(4, 4\)"),
        ({"image": np.zeros((1, 0, 4, 4))}, r"none of them 0, got \(1, 0, 4, 4\)"),
        ({"image": np.full((2, 2, 2), np.nan)}, "`image` must be finite; 8 values are not"),
        ({"spacing": (1, 1)}, r"`spacing` must have 3 values, of the axes D, H, W, got 2: \(1, 1\)"),
        ({"spacing": (1, 0, 1)}, r"`spacing`=\(1, 0, 1\) must be positive and finite"),
        ({"spacing": (1, float("nan"), 1)}, "must be positive and finite"),
        ({"min_size": 0}, "`min_size`=0 must be at least 1"),
        ({"scale": -1.0}, "`scale`=-1.0 must be a finite number, at least 0"),
        ({"threshold": float("nan")}, "`threshold`=nan must be a number"),
        ({"connectivity": 8}, "`connectivity`=8 is unknown; known: 6, 18, 26"),
        ({"backend": "cuda"}, "`backend`='cuda' is unknown; known: extension, numpy"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        supervoxels(**{"image": np.zeros((4, 4, 4)), "spacing": SPACING} | change)


def test_volume_beyond_the_indices_is_refused():
    mask = np.broadcast_to(np.bool_(True), (2**11, 2**10, 2**10))
    with pytest.raises(ValueError, match=r"has 2147483648 voxels; the most at `connectivity`=6 is 1431655764"):
        segment_grid(np.zeros((1, 1, 1, 1), np.float32), mask, SPACING, scale=1, min_size=1)


@pytest.fixture
def made(monkeypatch):
    """Counts how often labels are made."""
    calls = []

    def count(*arguments, **options):
        calls.append(1)
        return supervoxels(*arguments, **options)

    monkeypatch.setattr(supervoxel_cache, "supervoxels", count)
    return calls


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=(6, 12, 12)).astype(np.float32)


def test_cache_is_read_while_nothing_changes(tmp_path, made, volume):
    folder = tmp_path / "new" / "folder"
    first = cached_supervoxels(volume, SPACING, folder, "case_1")
    again = cached_supervoxels(np.asfortranarray(volume), list(SPACING), folder, "case_1", SupervoxelParameters())
    assert len(made) == 1
    assert again.dtype == np.int32
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(first, supervoxels(volume, SPACING))
    assert os.listdir(folder) == ["case_1.supervoxels"]
    with np.load(folder / "case_1.supervoxels") as content:
        assert content["labels"].dtype == np.uint16
        assert json.loads(str(content["parameters"]))["threshold"] == 10


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.random.default_rng(1).normal(size=(6, 12, 12)).astype(np.float32)},
        {"image": np.random.default_rng(0).normal(size=(6, 12, 12))},
        {"spacing": (2, 1, 1)},
        *({"parameters": SupervoxelParameters(**p)} for p in ({"min_size": 9}, {"scale": 2.0}, {"connectivity": 26})),
    ],
)
def test_cache_is_made_anew_when_anything_changes(tmp_path, made, volume, change):
    arguments = {"image": volume, "spacing": SPACING, "folder": tmp_path, "case": "a"}
    cached_supervoxels(**arguments)
    for _ in range(2):
        cached_supervoxels(**arguments | change)
    assert len(made) == 2


def test_cache_is_made_anew_by_another_version(tmp_path, made, volume, monkeypatch):
    cached_supervoxels(volume, SPACING, tmp_path, "a")
    monkeypatch.setattr(supervoxel_cache, "VERSION", 999)
    cached_supervoxels(volume, SPACING, tmp_path, "a")
    assert len(made) == 2


def test_damaged_cache_is_made_anew(tmp_path, made, volume):
    expected = cached_supervoxels(volume, SPACING, tmp_path, "a")
    path = tmp_path / "a.supervoxels"
    whole = path.read_bytes()
    damaged = [b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1]]
    damaged += [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    for content in damaged:
        path.write_bytes(content)
        np.testing.assert_array_equal(cached_supervoxels(volume, SPACING, tmp_path, "a"), expected)
    assert len(made) > 5


def test_file_of_other_content_is_made_anew(tmp_path, made, volume):
    path = tmp_path / "a.supervoxels"
    key = supervoxel_cache.content_key(volume[None], SPACING, SupervoxelParameters())
    for content in ({"labels": np.zeros((1, 2, 3))}, {"labels": np.zeros((1, 2, 3)), "key": key}, {"key": key}):
        with path.open("wb") as file:
            np.savez_compressed(file, **content)
        assert cached_supervoxels(volume, SPACING, tmp_path, "a").shape == volume.shape
    assert len(made) == 3


def test_interrupted_write_leaves_no_broken_cache(tmp_path, made, volume, monkeypatch):
    def interrupted(file, **content):
        file.write(b"PK\x03\x04half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_supervoxels(volume, SPACING, tmp_path, "a")
    assert os.listdir(tmp_path) == []
    expected = cached_supervoxels(volume, SPACING, tmp_path, "a")

    # A killed process cannot remove its temporary file, which does no harm.
    script = """
import os, signal, sys
import numpy as np
from nnunet_ext.supervoxels import cached_supervoxels
np.savez_compressed = lambda file, **_: (file.write(b"PK half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL))
cached_supervoxels(np.zeros((2, 3, 4)), (1, 1, 1), sys.argv[1], "a")
"""
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("a.supervoxels.*.partial"))) == 1
    np.testing.assert_array_equal(cached_supervoxels(volume, SPACING, tmp_path, "a"), expected)
    assert len(made) == 2
    # nnU-Net finds no further case in the folder of preprocessed data.
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".npz", ".npy", ".b2nd", ".pkl"))]


@pytest.mark.parametrize("case", ["", "../a", "folder/a", ".", ".."])
def test_case_must_be_a_name(tmp_path, volume, case):
    with pytest.raises(ValueError, match="must be a file name, without folders"):
        cached_supervoxels(volume, SPACING, tmp_path, case)
