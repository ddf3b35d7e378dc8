"""How everything was computed, in words."""

from nnunet_ext.compare.lesions import MATCHING_IOU
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.trust import CONVERGED_RISE, FEWEST_EPOCHS
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import RESAMPLES

_EMPTY = {
    "score": "A case that does not have a label scores Dice and NSD 1 and distance 0 where nothing is predicted, else "
    "Dice and NSD 0 (the rule of the BraTS challenges).",
    "rate": "A case that does not have a label is left out for every method, whatever was predicted there; the "
    "false-positive rates have a table of their own.",
}

_TRUST = (
    f"Caveats about trainings: fewer than {FEWEST_EPOCHS} epochs; not converged, if in any fold the mean pseudo Dice "
    f"of the last tenth of the epochs is more than {METRICS[PRIMARY].shown(CONVERGED_RISE)} points above that of the "
    "tenth before (from nnU-Net's log, from 20 epochs on); folds that contradict the verdict, if at least one of "
    "three or more folds has a mean difference of the opposite sign. They change no number and no verdict."
)


def procedure(outcome: Outcome) -> list[str]:
    """One paragraph each on pairs, differences, verdicts, resampling and metrics."""
    study, settings = outcome.study, outcome.settings
    where = "cases of the held-out set" if study.configuration is None else "cases of all validation folds"
    margin = METRICS[PRIMARY].shown(settings.margin)
    grouped = f"{len(set(study.groups.values()))} groups" if study.groups else "every case by itself"
    tolerances = settings.tolerance_of(list(study.labels.labels))
    single = ", ".join(f"{name} {value:g}" for name, value in tolerances.items() if value != settings.tolerance)
    length = "pixels" if study.labels.in_pixels else "mm"
    lesions = (
        f"Lesions of {', '.join(settings.lesions)} are connected components; a true and a predicted one match if their "
        f"intersection over union is at least {MATCHING_IOU:g}. Recall is over cases that have a lesion (of the volume "
        "band), precision 0 in such cases where nothing is predicted; F1 and precision of a case without lesions "
        "follow the rule for labels that a case does not have."
    )
    return [
        (
            f"Pairs: the {where}; a case counts with the mean of its labels. {_EMPTY[settings.empty_labels]} HD95 and "
            "ASSD of a label that was missed entirely, or is false positive, are the image's diagonal. The truth alone "
            "decides which cases count, so that all means and differences are over the same cases."
        ),
        (
            "Difference: the mean over cases, with the interval of a mixed model: random effects of the trainings of "
            f"each fold, of groups ({grouped}) and of cases; ANOVA estimates and Satterthwaite's degrees of freedom. "
            "Tests: Student's test of that model, Wilcoxon's signed-rank test on the groups' means and, from six folds "
            "on, a permutation of the folds' signs; p is the largest of them, two-sided, with Holm's correction over "
            f"the challengers ({len(study.challengers)})."
        ),
        (
            "Verdict: better or worse if the 95% interval excludes zero and p is below 5% to the same side; equivalent "
            f"if the 90% interval lies within ±{margin} Dice points and the one-sided tests against that margin (TOST) "
            "reject, even where a smaller difference is shown; inconclusive otherwise. It rests on the mean Dice "
            "alone: other metrics and single labels are reported without correction for their number."
        ),
        (
            f"Under these trainings: bootstrap 95% interval of {RESAMPLES:,} resamples of whole groups within folds "
            f"(seed {settings.seed}), corrected for few cases. It does not say how much the result would change with "
            "other random seeds. Ranks are resampled in the same way."
        ),
        (
            f"NSD, the surface Dice at {settings.tolerance:g} {length}{f' ({single})' if single else ''}, HD95 and "
            "ASSD weight surface elements by their area (DeepMind's definition). Volume error is the absolute "
            "difference of the volumes. nnU-Net's foreground_mean leaves a case out of a label's mean where neither "
            "truth nor prediction has the label."
        ),
        *([lesions] if settings.lesions else []),
        *([_TRUST] if study.configuration is not None else []),
    ]
