import pytest

from tests.helpers.fingerprints import Dataset


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return Dataset(tmp_path, monkeypatch)
