"""Files that are replaced in one step, on a disk that is full, limited or read-only."""

import contextlib
import os
import resource
import time

import numpy as np
import pytest
import torch

from nnunet_ext.supervoxels.supervoxel_cache import cached_supervoxels
from nnunet_ext.utils.files import check_writable, remove_left_overs, replacing
from nnunet_ext.weights import write_pretrained

KILOBYTE = 1024


@contextlib.contextmanager
def file_limit(size):
    """No file of this process can grow beyond `size` bytes, as under a quota: EFBIG rather than ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_tensors(path):
    with replacing(path) as file:
        torch.save({"weights": [torch.randn(32 * KILOBYTE) for _ in range(16)]}, file)  # 2 MB


def write_arrays(path):
    with replacing(path, shared=True) as file:
        np.savez_compressed(file, labels=np.random.default_rng(0).integers(0, 2**30, 512 * KILOBYTE))


def write_text(path):
    with replacing(path, "w") as file:
        for _ in range(2000):
            file.write("ü" * KILOBYTE)


def write_weights(path):
    write_pretrained(torch.nn.Linear(1024, 512), path)


WRITERS = [write_tensors, write_arrays, write_text, write_weights]


@pytest.mark.parametrize("write", WRITERS)
def test_on_a_full_disk_the_old_file_stays_and_the_error_says_which_and_why(small_disk, write):
    path = small_disk(1) / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_limit_on_sizes_is_like_a_full_disk(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=rf"File too large: '{path}'"), file_limit(512 * KILOBYTE):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_is_replaced_and_nothing_is_left_over(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / "file.partial").write_text("of a run that was killed")
    write(path)
    assert path.stat().st_size > 512 * KILOBYTE
    assert set(os.listdir(tmp_path)) <= {"file", "file.partial"}
    assert ("file.partial" in os.listdir(tmp_path)) == (write is write_arrays)  # its own name has a number in it


def fail_inside(path, error):
    with replacing(path) as file:
        file.write(b"half")
        raise error


def test_other_errors_come_as_they_are(tmp_path):
    with pytest.raises(KeyError, match="inside"):
        fail_inside(tmp_path / "file", KeyError("inside"))
    with pytest.raises(FileNotFoundError, match="other"):
        fail_inside(tmp_path / "file", FileNotFoundError(2, "No such file", "other"))
    assert os.listdir(tmp_path) == []


def test_old_left_overs_are_removed_and_what_others_write_now_is_not(tmp_path):
    for name in ("old.1.partial", "new.2.partial", "whole"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old.1.partial", (time.time() - 7200,) * 2)
    remove_left_overs(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["new.2.partial", "whole"]


def test_a_folder_that_cannot_be_written_is_named(read_only, tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    folder = read_only()
    for path in (folder, folder / "new"):
        with pytest.raises(OSError, match=rf"cannot write into this folder: Read-only file system: '{path}'"):
            check_writable(path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"cannot write into this folder: .*: '{tmp_path}/file'"):
        check_writable(tmp_path / "file")


def test_a_folder_of_another_user_is_named(tmp_path):
    """As another user, where this one may become one: permissions do not bind root."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
            check_writable(tmp_path)
        return
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
            check_writable(tmp_path)
    finally:
        os.seteuid(0)


def test_the_supervoxel_cache_on_a_full_disk(small_disk):
    folder = small_disk(0.1)
    image = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    (folder / "filler").write_bytes(bytes(92 * KILOBYTE))
    path = folder / "case.supervoxels"
    expected = cached_supervoxels(image, (1, 1, 1), folder, "small")
    before = os.listdir(folder)
    large = np.random.default_rng(0).normal(size=(32, 64, 64)).astype(np.float32)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        cached_supervoxels(large, (1, 1, 1), folder, "case")
    assert sorted(os.listdir(folder)) == sorted(before)
    assert (cached_supervoxels(image, (1, 1, 1), folder, "small") == expected).all()
