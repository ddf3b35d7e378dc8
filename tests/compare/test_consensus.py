"""The consensus ranking over several datasets."""

import json

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from nnunet_ext.cli.main import main
from nnunet_ext.compare.consensus import consensus

NAMES = ["A", "B", "C"]


def test_mean_ranks_by_hand():
    """A is first, then second with B first; C is last, and shares rank 2.5 in the third dataset."""
    tables = [
        np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]]),
        np.array([[0.8], [0.9], [0.7]]),
        np.array([[0.9], [0.8], [0.8]]),
    ]
    places = consensus(tables, NAMES, resamples=100)
    assert [place.name for place in places] == ["A", "B", "C"]
    assert [place.mean_rank for place in places] == pytest.approx([4 / 3, 5.5 / 3, 8.5 / 3])
    assert places[2].ranks == (3, 3, 2.5)
    for place in places:
        assert (place.low, place.high) == pytest.approx((place.mean_rank, place.mean_rank))


def test_intervals_show_how_firm_the_order_is():
    generator = np.random.default_rng(0)
    base = generator.normal(0.8, 0.05, 40)
    clear = [np.array([base + 0.05, base, base - 0.05]) for _ in range(3)]
    open_ones = [base + generator.normal(0, 0.05, (3, 40)) for _ in range(3)]
    for place in consensus(clear, NAMES):
        assert place.low == place.high == place.mean_rank
    assert max(place.high - place.low for place in consensus(open_ones, NAMES)) > 0.5
    # Whole units are drawn: with all cases in one unit nothing varies.
    assert all(p.low == p.high for p in consensus(open_ones, NAMES, [["u"] * 40] * 3))


def test_the_command_writes_one_page(report, tmp_path, open_page, capsys):
    file = str(report / "summary.json")
    assert main(["compare", "--reports", file, file, "-o", str(tmp_path)]) == 0
    assert "SASANTrainer" in capsys.readouterr().out
    content = json.loads((tmp_path / "consensus.json").read_text())
    assert content["places"][0] | {"low": 1, "high": 1} == {
        "name": "SASANTrainer",
        "mean_rank": 1,
        "low": 1,
        "high": 1,
        "ranks": [1, 1],
    }
    for scheme in ("light", "dark"):
        browser = open_page(tmp_path / "consensus.html", 390, scheme)
        assert "SASANTrainer has the best mean rank" in browser.find_element(By.TAG_NAME, "h1").text
        page = browser.find_element(By.TAG_NAME, "html")
        assert page.get_property("scrollWidth") == page.get_property("clientWidth")


def test_reports_that_do_not_fit_are_refused(report, tmp_path, capsys):
    file = report / "summary.json"
    content = json.loads(file.read_text())
    other = tmp_path / "summary.json"
    other.write_text(json.dumps(content | {"entrants": content["entrants"][:2]}))
    for reports, message in (
        ([file], "--reports needs the summary.json of at least two datasets"),
        ([file, other], "the methods differ: "),
        ([file, tmp_path / "none.json"], "no such file: "),
    ):
        assert main(["compare", "--reports", *map(str, reports), "-o", str(tmp_path / "all")]) == 2
        assert message in capsys.readouterr().err
    assert main(["compare", "--reports", str(file), str(file), "-d", "4", "-o", str(tmp_path / "all")]) == 2
    assert "--reports stands alone" in capsys.readouterr().err
