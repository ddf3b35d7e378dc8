"""The consensus ranking over several datasets."""

import itertools
import json

import numpy as np
import pytest
from scipy import special
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


def r_normal(seed, count):
    """R's `set.seed(seed); rnorm(count)`: the Mersenne Twister, seeded by a congruential generator, and inversion."""
    state, key = seed, []
    for _ in range(50 + 625):
        state = (69069 * state + 1) % 2**32
        key.append(state)
    bits = np.random.MT19937()
    bits.state = {"bit_generator": "MT19937", "state": {"key": np.array(key[51:], dtype=np.uint32), "pos": 624}}
    uniform = bits.random_raw(2 * count).astype(float) / (2**32 - 1)
    return special.ndtri((np.floor(2**27 * uniform[::2]) + uniform[1::2]) / 2**27)


def test_agrees_with_the_example_of_challenger():
    """The three tasks of challengeR's vignettes, defined there by the calls of R that are repeated here.

    Its reports print the consensus of method "euclidean", which is the mean of the ranks of the tasks, equal ones
    averaged: A1 to A5 are in order in c_ideal, and A1, A2, A4, A5, A3 in c_random; c_worstcase has every ranking once,
    so that all share rank 3. The vignettes do not print the means; they follow from these ranks.
    """
    assert r_normal(1, 4) == pytest.approx([-0.6264538, 0.1836433, -0.8356286, 1.5952808], abs=1e-7)  # as R prints
    generator = np.random.default_rng(4)
    bounds = [(0.9, 1), (0.8, 0.89), (0.7, 0.79), (0.6, 0.69), (0.5, 0.59)]
    ideal = np.array([generator.uniform(low, high, 50) for low, high in bounds])  # disjoint: any numbers do
    random = special.expit(1.5 + r_normal(1, 250)).reshape(5, 50)
    worst = np.array(list(itertools.permutations(np.linspace(0.8, 1, 5)))).T
    places = consensus([ideal, random, worst], ["A1", "A2", "A3", "A4", "A5"], resamples=100)
    assert {place.name: place.ranks for place in places} == {
        "A1": (1, 1, 3),
        "A2": (2, 2, 3),
        "A3": (3, 5, 3),
        "A4": (4, 3, 3),
        "A5": (5, 4, 3),
    }
    expected = [("A1", 1.667), ("A2", 2.333), ("A4", 3.333), ("A3", 3.667), ("A5", 4)]
    assert [(place.name, round(place.mean_rank, 3)) for place in places] == expected


def test_the_consensus_is_nearest_to_the_rankings_of_all_datasets():
    """Mean ranks minimise the sum of squared distances to the datasets' ranks, as the method "euclidean" asks."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        tables = [generator.normal(size=(4, 6)) for _ in range(3)]
        places = consensus(tables, ["A", "B", "C", "D"], resamples=10)
        ranks = {place.name: np.array(place.ranks) for place in places}
        costs = {
            order: sum(float(((ranks[name] - rank) ** 2).sum()) for rank, name in enumerate(order, start=1))
            for order in itertools.permutations("ABCD")
        }
        assert costs[tuple(place.name for place in places)] == pytest.approx(min(costs.values()))


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
