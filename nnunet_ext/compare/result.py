"""All that a report is written from."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from nnunet_ext.compare.analysis import Analysis
from nnunet_ext.compare.cost import Cost
from nnunet_ext.compare.study import Study
from nnunet_ext.nnunet.training_log import TrainingLog


@dataclass(frozen=True)
class Settings:
    """What a user may choose.

    Attributes:
        margin: Difference in Dice that does not matter, from 0 to 1.
        tolerance: Of the surface Dice, in mm.
        seed: Of the bootstrap.
        timed: Whether the logs' seconds tell what the networks cost.
    """

    margin: float = 0.005
    tolerance: float = 2.0
    seed: int = 0
    timed: bool = True


@dataclass(frozen=True)
class Outcome:
    """A study with its scores and what they say.

    Attributes:
        study: What is compared.
        settings: How.
        scores: As `measure` returns them.
        analysis: What they say.
        costs: By entrant; empty for folders of predictions.
        logs: By entrant and fold; likewise.
    """

    study: Study
    settings: Settings
    scores: pd.DataFrame
    analysis: Analysis
    costs: Mapping[str, Cost]
    logs: Mapping[str, Mapping[str, TrainingLog]]
