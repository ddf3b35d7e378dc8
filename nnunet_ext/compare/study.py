"""A study: the methods compared, their cases and where their files are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.compare.labels import LabelSet


@dataclass(frozen=True)
class Case:
    """One predicted case.

    Attributes:
        name: nnU-Net's identifier.
        fold: Fold whose validation contains it; "test" for a held-out set.
        prediction: Predicted segmentation map.
        truth: True segmentation map.
        image: First channel of the image; None if there is none.
        recorded: nnU-Net's own evaluation from summary.json by label name: Dice and n_ref; empty without one.
    """

    name: str
    fold: str
    prediction: Path
    truth: Path
    image: Path | None
    recorded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One set of trainings of a method, one per fold, or one folder of predictions.

    Attributes:
        cases: Cases by identifier, sorted.
        model: nnU-Net's folder of the model; None for a folder of predictions.
    """

    cases: Mapping[str, Case]
    model: Path | None = None


@dataclass(frozen=True)
class Method:
    """One trainer with its plans, or one folder of predictions, with its repeats.

    Attributes:
        name: Name shown in the report.
        cases: Cases of the first run by identifier, sorted.
        trainer: Name of the trainer's class; None for a folder of predictions.
        model: nnU-Net's folder of the first run; None likewise.
        repeats: Further runs of the same recipe with other random seeds, of the same cases and folds.
    """

    name: str
    cases: Mapping[str, Case]
    trainer: str | None = None
    model: Path | None = None
    repeats: Sequence[Run] = ()

    @property
    def runs(self) -> list[Run]:
        """The first run and its repeats."""
        return [Run(self.cases, self.model), *self.repeats]


@dataclass(frozen=True)
class Study:
    """Methods over the same cases.

    Attributes:
        title: Dataset and configuration, or the held-out set.
        methods: At least two; the baseline is one of them.
        baseline: Name of the baseline.
        labels: Labels evaluated.
        folds: Folds, in order.
        notes: Caveats found while the study was collected.
        configuration: nnU-Net's configuration; None for a held-out set.
        groups: Group by case, for example the patient; None: every case is independent.
        supports: Whether repeats are other supports of the same trainings (few-shot segmentation), the same ones for
            all methods, rather than other trainings.
    """

    title: str
    methods: Sequence[Method]
    baseline: str
    labels: LabelSet
    folds: Sequence[str]
    notes: Sequence[str] = ()
    configuration: str | None = None
    groups: Mapping[str, str] | None = None
    supports: bool = False

    @property
    def cases(self) -> Mapping[str, Case]:
        """The cases of the first method; every method has the same cases in the same folds."""
        return self.methods[0].cases

    @property
    def challengers(self) -> list[str]:
        return [method.name for method in self.methods if method.name != self.baseline]


def check_names(names: Sequence[str], baseline: str) -> None:
    """Raises ValueError unless there are two methods with different names and the baseline is one of them."""
    if len(set(names)) < len(names):
        raise ValueError(f"named twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
    if len(names) < 2:
        raise ValueError(f"{names[0]} alone cannot be compared: name at least two, the baseline among them")
    if baseline not in names:
        raise ValueError(f"the baseline {baseline!r} is not among those compared; known: {', '.join(names)}")
