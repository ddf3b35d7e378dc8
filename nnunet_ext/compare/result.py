"""The complete result of a comparison, from which reports are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from nnunet_ext.compare.analysis import Analysis
from nnunet_ext.compare.beyond import Beyond
from nnunet_ext.compare.cost import Cost
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.study import Study
from nnunet_ext.nnunet.training_log import TrainingLog


@dataclass(frozen=True)
class Outcome:
    """A study with its scores and their analysis.

    Attributes:
        study: The study.
        settings: The user's settings.
        scores: Scores of all cases, absent labels treated by the rule of the settings.
        analysis: The statistical results.
        costs: Costs by method; empty for folders of predictions.
        logs: Training logs by method and fold; likewise.
        beyond: What was made beside the compared trainings.
    """

    study: Study
    settings: Settings
    scores: pd.DataFrame
    analysis: Analysis
    costs: Mapping[str, Cost]
    logs: Mapping[str, Mapping[str, TrainingLog]]
    beyond: Beyond = field(default_factory=Beyond)
