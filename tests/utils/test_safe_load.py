"""Files of torch.save are read without executing what they may contain."""

import os
import subprocess
from functools import partial

import numpy as np
import pytest
import torch

from nnunet_ext.utils.safe_load import NotPlainError, load_plain, without_numpy
from tests.helpers.unpickling import Calls


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("exit",), "system"),
        (eval, ("1 / 0",), "eval"),
        (subprocess.Popen, (["ls"],), "Popen"),
        (partial, (print, "executed"), "partial"),
        (torch.hub.load, ("a", "b"), "load"),
    ],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_refused_by_name(tmp_path, function, arguments, name, new_format):
    file = tmp_path / "weights.pth"
    torch.save({"weights": Calls(function, *arguments)}, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(NotPlainError, match=rf"weights\.pth holds Python objects besides tensors \(.*{name}\)"):
        load_plain(file)


@pytest.mark.parametrize("kind", "?bhilqBHILQefd")
def test_numbers_and_arrays_of_numpy_are_plain(tmp_path, kind):
    values = np.array([0, 1, 1], kind)
    torch.save({"number": values[1], "values": values}, tmp_path / "log.pth")
    found = load_plain(tmp_path / "log.pth")
    assert found["number"] == values[1]
    assert found["number"].dtype == values.dtype
    np.testing.assert_array_equal(found["values"], values)


def test_tensors_stay_in_the_file_until_they_are_used(tmp_path):
    torch.save({"weights": torch.arange(9.0), "device": torch.device("cuda", 1)}, tmp_path / "weights.pth")
    found = load_plain(tmp_path / "weights.pth", mmap=True)
    assert found["weights"].sum() == 36
    assert found["device"].index == 1


def test_numbers_of_numpy_become_those_of_python():
    given = {"a": [np.float32(0.5), (np.int64(2), "x")], np.int64(3): {"b": np.bool_(True)}, "c": np.ones(2)}
    found = without_numpy(given)
    assert found == {"a": [0.5, (2, "x")], 3: {"b": True}, "c": given["c"]}
    assert [type(value) for value in (found["a"][0], found["a"][1][0], found[3]["b"])] == [float, int, bool]
