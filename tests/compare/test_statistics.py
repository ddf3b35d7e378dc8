"""Statistics against values computed by hand, by enumeration and by scipy, and without a true difference."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.compare.inference import Estimate, estimate, verdict
from nnunet_ext.compare.ranking import rank
from nnunet_ext.compare.resampling import bootstrap_means
from nnunet_ext.compare.statistics import holm, signed_rank_p, strata

MARGIN = 0.005
DIFFERENCES = np.array([0.012, -0.004, 0.021, 0.008, 0.015, -0.001, 0.03, 0.006])
FOLDS = list("00001111")


def by_enumeration(values, alternative):
    """p of the signed-rank test over all 2^n signs, zeros ranked but not counted."""
    ranks = stats.rankdata(np.abs(values)) * (values != 0)
    seen = ranks[values > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product([0, 1], repeat=len(values))])
    greater, less = (sums >= seen - 1e-9).mean(), (sums <= seen + 1e-9).mean()
    return {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}[alternative]


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize(
    "values",
    [DIFFERENCES, np.round(DIFFERENCES, 2), np.array([0, 0, 0.01, 0.02, 0.02, -0.03]), np.full(5, 0.01)],
    ids=["plain", "ties", "zeros", "equal"],
)
def test_signed_rank_test_is_exact_for_few_cases(values, alternative):
    assert signed_rank_p(values, alternative) == pytest.approx(by_enumeration(values, alternative))


def test_signed_rank_test_by_hand():
    """Ranks of the negative ones: 1 and 2 of 8, so 5 of the 256 sign patterns have a sum of at most 3."""
    assert signed_rank_p(DIFFERENCES) == pytest.approx(2 * 5 / 256)
    assert signed_rank_p(np.zeros(10)) == 1


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize(("cases", "method"), [(8, "exact"), (50, "exact"), (51, "asymptotic"), (200, "asymptotic")])
def test_signed_rank_test_is_scipys(cases, method, alternative):
    values = np.random.default_rng(0).normal(0.1, 1, cases)
    expected = stats.wilcoxon(values, alternative=alternative, method=method).pvalue
    assert signed_rank_p(values, alternative) == pytest.approx(expected)


def test_signed_rank_test_with_ties_and_zeros_comes_close_to_the_normal_one():
    values = np.round(np.random.default_rng(0).normal(0.1, 1, 50), 1)
    assert 0 in values
    expected = stats.wilcoxon(values, zero_method="pratt", method="asymptotic").pvalue
    assert signed_rank_p(values) == pytest.approx(expected, abs=0.01)


def test_few_differences_among_many_cases_are_tested_exactly():
    """Four of sixty differ, all to one side: one sign pattern of sixteen to each."""
    values = np.zeros(60)
    values[:4] = [0.1, 0.2, 0.3, 0.4]
    assert signed_rank_p(values) == pytest.approx(2 / 16)
    assert signed_rank_p(values, "greater") == pytest.approx(1 / 16)


def test_five_folds_alone_could_never_be_significant():
    assert signed_rank_p(np.arange(1.0, 6)) == 0.0625


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, then the largest so far: 0.03 x 2 is 0.06 and 0.04 x 1 below it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_estimate_of_fixed_data():
    result = estimate(DIFFERENCES, FOLDS, MARGIN, seed=0)
    assert result.cases == 8
    assert result.mean == pytest.approx(0.010875)
    assert repr(result) == repr(estimate(DIFFERENCES, FOLDS, MARGIN, seed=0))  # NaN is not equal to itself
    ends = {estimate(np.sqrt(np.arange(1, 13)), ["0"] * 12, MARGIN, seed=seed).conditional_low for seed in (0, 1)}
    assert len(ends) == 2
    assert result.p_signed_rank == pytest.approx(by_enumeration(DIFFERENCES, "two-sided"))
    assert result.p == max(result.p_model, result.p_signed_rank)
    assert result.p_equivalent >= by_enumeration(DIFFERENCES - MARGIN, "less") - 1e-12


def test_bootstrap_is_stratified_and_has_the_spread_of_the_mean():
    """Variance of the mean: the sum over folds of (n_k / n)^2 s_k^2 / n_k, whatever the differences between folds."""
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(mean, 1, size) for mean, size in ((0, 3), (100, 5), (-50, 12))])
    folds = ["a"] * 3 + ["b"] * 5 + ["c"] * 12
    means = bootstrap_means(values, folds, range(20), generator, 40_000)
    parts = np.split(values, [3, 8])
    expected = sum((len(part) / 20) ** 2 * part.var(ddof=1) / len(part) for part in parts)
    assert means.var() == pytest.approx(expected, rel=0.03)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)


def test_bootstrap_of_one_fold_is_scipys():
    """Equal except for the corrections for few cases, which vanish with 500."""
    values = np.random.default_rng(0).normal(1, 2, 500)
    ours = estimate(values, ["0"] * 500, MARGIN, seed=0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert (ours.conditional_low, ours.conditional_high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize(("cases", "folds"), [(6, 1), (10, 5), (20, 5)])
def test_the_interval_covers_the_truth(cases, folds):
    """The coverage, also with few cases: at least 95% less three standard errors."""
    generator = np.random.default_rng(0)
    names = [str(i % folds) for i in range(cases)]
    runs, hits = 600, 0
    for seed in range(runs):
        result = estimate(generator.normal(0.3, 1, cases), names, MARGIN, seed=seed, resamples=0)
        hits += result.low < 0.3 < result.high
    assert hits / runs > 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)


def test_folds_of_one_case_are_taken_together():
    assert [group.tolist() for group in strata(list("0122"))] == [[2, 3], [0, 1]]
    assert [group.tolist() for group in strata(list("01122"))] == [[3, 4], [0, 1, 2]]
    assert [group.tolist() for group in strata(["0"])] == [[0]]


def test_missing_pairs_are_dropped_and_a_single_pair_decides_nothing():
    values = np.array([np.nan, 0.5, np.nan])
    result = estimate(values, list("001"), MARGIN, seed=0)
    assert (result.cases, result.mean, result.p) == (1, 0.5, 1)
    assert np.isnan(result.low)
    assert verdict(result, result.p, result.p_equivalent, MARGIN) == "inconclusive"
    nothing = estimate([np.nan], ["0"], MARGIN, seed=0)
    assert nothing.cases == 0
    assert verdict(nothing, nothing.p, nothing.p_equivalent, MARGIN) == "inconclusive"


@pytest.mark.parametrize(
    ("low", "high", "p", "p_equivalent", "expected"),
    [
        (0.002, 0.02, 0.01, 0.9, "better"),
        (-0.02, -0.002, 0.01, 0.9, "worse"),
        (-0.002, 0.003, 0.6, 0.01, "equivalent"),
        (0.001, 0.003, 0.001, 0.001, "equivalent"),  # a proven difference below the margin
        (0.002, 0.02, 0.06, 0.9, "inconclusive"),  # the interval alone
        (-0.001, 0.02, 0.01, 0.9, "inconclusive"),  # the test alone
        (-0.002, 0.003, 0.6, 0.06, "inconclusive"),  # too few cases for the equivalence test
        (-0.02, 0.02, 0.6, 0.6, "inconclusive"),
    ],
)
def test_verdicts(low, high, p, p_equivalent, expected):
    nan = float("nan")
    direction = 1 if low + high > 0 else -1
    difference = Estimate(
        *(20, (low + high) / 2, low, high, low, high, direction, p, p, p, nan, p_equivalent, nan, nan, True, None)
    )
    assert verdict(difference, p, p_equivalent, MARGIN) == expected
    opposite = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert verdict(difference, p, p_equivalent, MARGIN, higher_is_better=False) == opposite


def test_interval_and_test_to_different_sides_decide_nothing():
    """A few cases gain much, most lose a little: the mean rises, the signed ranks fall."""
    result = estimate([-0.001] * 30 + [0.2] * 6, ["0"] * 36, MARGIN, seed=0)
    assert result.low > 0
    assert result.p < 0.05
    assert result.direction == -1
    assert verdict(result, result.p, result.p_equivalent, MARGIN) == "inconclusive"


@pytest.mark.parametrize("shape", ["normal", "skewed", "heavy"])
def test_without_a_true_difference_better_or_worse_is_rare(shape):
    """Three trainers as good as the baseline, 200 runs: any verdict errs in at most 5%, plus sampling error."""
    draw = {
        "normal": lambda size: generator.normal(0, 0.02, size),
        "skewed": lambda size: 0.02 * (generator.exponential(size=size) - 1),
        "heavy": lambda size: 0.02 * generator.standard_t(3, size),
    }[shape]
    generator = np.random.default_rng(0)
    folds = [str(i % 5) for i in range(40)]
    runs, wrong = 200, 0
    for seed in range(runs):
        baseline = draw(40)  # shared: the challengers' differences are correlated
        estimates = [estimate(draw(40) - baseline, folds, MARGIN, seed=seed, resamples=0) for _ in range(3)]
        p_values, p_equivalent = holm([e.p for e in estimates]), holm([e.p_equivalent for e in estimates])
        verdicts = [verdict(*each, MARGIN) for each in zip(estimates, p_values, p_equivalent, strict=True)]
        wrong += bool({"better", "worse"} & set(verdicts))
    assert wrong / runs <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / runs)


def test_a_true_difference_and_true_equivalence_are_found():
    generator = np.random.default_rng(0)
    folds = [str(i % 5) for i in range(60)]
    found = {"better": 0, "worse": 0, "equivalent": 0}
    for seed in range(50):
        for name, mean, spread in (("better", 0.02, 0.03), ("worse", -0.02, 0.03), ("equivalent", 0, 0.008)):
            result = estimate(generator.normal(mean, spread, 60), folds, MARGIN, seed=seed, resamples=0)
            found[name] += verdict(result, result.p, result.p_equivalent, MARGIN) == name
    assert min(found.values()) >= 45


def test_ranks_by_hand():
    """B is best in three cases of four; in the fourth A and C share places 1 and 2."""
    scores = np.array([[0.8, 0.7, 0.6, 0.9], [0.9, 0.9, 0.9, 0.1], [0.7, 0.6, 0.8, 0.9]])
    ranking = rank(["A", "B", "C"], scores, ["0"] * 4, seed=0)
    assert ranking.mean_ranks == pytest.approx({"A": (2 + 2 + 3 + 1.5) / 4, "B": 6 / 4, "C": (3 + 3 + 2 + 1.5) / 4})
    assert ranking.order == ["B", "A", "C"]
    for places in ranking.places.values():
        assert 0 <= min(places) <= max(places) <= 1
    # B is first unless case 4 is drawn three times or more, or twice with ties broken against it.
    binomial = stats.binom(4, 1 / 4)
    assert 1 - binomial.sf(2) > ranking.places["B"][0] > binomial.cdf(1) - 0.02


def test_ranks_leave_out_cases_without_a_score_of_everyone():
    scores = np.array([[0.8, np.nan], [0.9, 0.9]])
    assert rank(["A", "B"], scores, ["0", "0"], seed=0).cases == 1
    assert rank(["A", "B"], scores[:, 1:], ["0"], seed=0).cases == 0
