"""Variance components, degrees of freedom, permutations and the sizes that would decide, against known answers."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.compare.inference import estimate
from nnunet_ext.compare.mixed_model import fit, training_noise
from nnunet_ext.compare.needed import needed
from nnunet_ext.compare.permutation import sign_permutation_p
from nnunet_ext.compare.resampling import bootstrap_means

FOLDS = np.repeat(np.arange(5), 12)


def test_balanced_folds_give_the_t_test_of_their_means():
    """Where folds differ, the mean's variance is that of the folds' means, with four degrees of freedom."""
    generator = np.random.default_rng(0)
    values = generator.normal(0.3, 1, 60) + 2 * generator.normal(size=5)[FOLDS]
    model = fit(values, FOLDS, np.arange(60))
    means = values.reshape(5, 12).mean(axis=1)
    assert model.variance == pytest.approx(means.var(ddof=1) / 5)
    assert model.freedom == pytest.approx(4)
    assert model.p_value() == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert model.interval(0.05) == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.95)))
    within = values.reshape(5, 12).var(axis=1, ddof=1).mean()
    assert model.components == pytest.approx((means.var(ddof=1) - within / 12, 0, within))


def test_one_fold_gives_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 20)
    model = fit(values, np.zeros(20), np.arange(20))
    assert model.p_value() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert model.p_value("less", 1) == pytest.approx(stats.ttest_1samp(values, 1, alternative="less").pvalue)


def test_balanced_groups_give_the_t_test_of_their_means():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 6)
    values = generator.normal(0, 0.3, 60) + generator.normal(size=10)[groups]
    model = fit(values, np.zeros(60), groups)
    means = values.reshape(10, 6).mean(axis=1)
    assert model.p_value() == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_components_are_unbiased_in_an_unbalanced_design():
    """Means over 400 data sets with known variances, the negative estimates excluded by large true values."""
    generator = np.random.default_rng(0)
    folds = np.repeat(np.arange(8), [9, 14, 7, 12, 10, 16, 8, 11])
    groups = np.arange(len(folds)) // 3 + 100 * folds
    index = np.unique(groups, return_inverse=True)[1]
    found = []
    for _ in range(400):
        values = 2 * generator.normal(size=8)[folds] + generator.normal(size=index.max() + 1)[index]
        found.append(fit(values + 0.5 * generator.normal(size=len(folds)), folds, groups).components)
    assert np.mean(found, axis=0) == pytest.approx([4, 1, 0.25], rel=0.12)


def test_folds_that_happen_to_agree_are_not_trusted_too_much():
    """Equal fold means: t is zero, and the interval is that of the cases, never shorter."""
    values = np.tile(np.linspace(-1, 1, 12), 5) + 0.1
    model = fit(values, FOLDS, np.arange(60))
    assert model.components[0] == 0
    within = values.reshape(5, 12).var(axis=1, ddof=1).mean()
    assert model.variance == pytest.approx(within / 60)


def test_groups_across_folds_keep_the_wider_interval():
    generator = np.random.default_rng(0)
    groups = np.tile(np.arange(12), 5)
    values = generator.normal(size=12)[groups] + 0.1 * generator.normal(size=60)
    crossed, alone = fit(values, FOLDS, groups), fit(values, FOLDS, np.arange(60))
    assert crossed.variance > 3 * alone.variance


def test_repeats_show_the_noise_of_seeds():
    """Three trainings of each fold, whose noise has a variance of 1; the mean of three has a third of it."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        cases = generator.normal(0, 3, 60)
        runs = [cases + generator.normal(size=(3, 5))[:, FOLDS] + generator.normal(size=(3, 60)) for _ in range(2)]
        noise = training_noise(runs, FOLDS)
        assert noise is not None
        assert noise.complete
        found.append(noise.variance)
    assert np.mean(found) == pytest.approx(2 / 3, rel=0.1)
    single = training_noise([runs[0], runs[1][:1]], FOLDS)
    assert single is not None
    assert not single.complete
    assert training_noise([runs[0][:1], runs[1][:1]], FOLDS) is None


def test_a_single_fold_speaks_for_new_trainings_only_with_repeats_of_both():
    values, folds = np.random.default_rng(0).normal(0.1, 1, 20), ["0"] * 20
    runs = [np.random.default_rng(i).normal(size=(2, 20)) for i in range(2)]
    assert not estimate(values, folds, 0.1).new_trainings
    assert not estimate(values, folds, 0.1, noise=training_noise([runs[0], runs[1][:1]], folds)).new_trainings
    assert estimate(values, folds, 0.1, noise=training_noise(runs, folds)).new_trainings


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_permutations_by_enumeration(alternative):
    sums = np.array([0.3, -0.1, 0.2, 0.4, 0.15, 0.25, -0.05])
    totals = np.array([np.dot(signs, sums) for signs in product([-1, 1], repeat=7)])
    tails = {
        "greater": (totals >= sums.sum() - 1e-9).mean(),
        "less": (totals <= sums.sum() + 1e-9).mean(),
    }
    tails["two-sided"] = 2 * min(tails.values())
    values, units = np.repeat(sums / 2, 2), np.repeat(np.arange(7), 2)
    assert sign_permutation_p(values, units, alternative) == pytest.approx(tails[alternative])


def test_many_units_are_drawn_at_random():
    values = np.random.default_rng(0).normal(0.5, 1, 30)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert sign_permutation_p(values, range(30)) == pytest.approx(expected, abs=0.01)


def test_the_bootstrap_draws_whole_groups():
    """The spread of the mean is that of the groups' means."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    values = generator.normal(size=20)[groups]
    means = bootstrap_means(values, np.zeros(100), groups, generator, 20_000)
    assert means.std() == pytest.approx(values[::5].std(ddof=1) / np.sqrt(20), rel=0.03)


def test_the_sizes_that_would_decide_do():
    """Without noise of trainings, the interval of as many cases excludes the mean that was found."""
    values = np.tile(np.linspace(-1, 1, 12), 5) + 0.1
    found = estimate(values, [str(fold) for fold in FOLDS], 0.01, resamples=0)
    sizes = needed(found, 0.01, 1)
    assert sizes is not None
    assert sizes.cases is not None
    assert found.model is not None
    half = stats.t.ppf(0.975, sizes.cases - 5) * np.sqrt(found.model.components[2] / sizes.cases)
    assert half == pytest.approx(0.1, rel=0.03)
    assert sizes.folds is None or sizes.folds > 5
    assert sizes.repeats is None


def test_few_groups_need_more_of_them():
    """Signed ranks of three groups cannot show a difference, however clear the mean."""
    found = estimate(np.linspace(0.9, 1.1, 12), ["0"] * 12, 0.01, groups=[str(i // 4) for i in range(12)], resamples=0)
    assert found.p >= 0.25
    sizes = needed(found, 0.01, 1)
    assert sizes is not None
    assert (sizes.cases, sizes.folds, sizes.repeats) == (28, None, None)
