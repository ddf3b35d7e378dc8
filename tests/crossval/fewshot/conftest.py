import pytest

from tests.helpers.shapes import Shapes


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    made = Shapes(tmp_path / "shapes")
    for name, value in made.environment.items():
        if name != "OMP_NUM_THREADS":
            monkeypatch.setenv(name, value)
    return made
