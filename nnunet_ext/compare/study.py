"""What is compared: entrants, their cases and where their files are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.compare.labels import LabelSet


@dataclass(frozen=True)
class Case:
    """One predicted case.

    Attributes:
        name: nnU-Net's identifier.
        fold: Fold in whose validation it is; "test" for a held-out set.
        prediction: Predicted segmentation map.
        truth: True one.
        image: First channel of the image, if it is there.
        recorded: nnU-Net's own evaluation from summary.json by label name: Dice and n_ref; empty without one.
    """

    name: str
    fold: str
    prediction: Path
    truth: Path
    image: Path | None
    recorded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entrant:
    """One trainer with its plans, or one folder of predictions.

    Attributes:
        name: As shown.
        cases: By identifier, sorted.
        trainer: Name of its class; None for a folder of predictions.
        model: nnU-Net's folder of the model; None likewise.
    """

    name: str
    cases: Mapping[str, Case]
    trainer: str | None = None
    model: Path | None = None


@dataclass(frozen=True)
class Study:
    """Entrants over the same cases.

    Attributes:
        title: Dataset and configuration, or the held-out set.
        entrants: At least two; the baseline is one of them.
        baseline: Its name.
        labels: What is evaluated.
        folds: In order.
        notes: What a reader must know about the comparison.
        configuration: nnU-Net's; None for a held-out set.
    """

    title: str
    entrants: Sequence[Entrant]
    baseline: str
    labels: LabelSet
    folds: Sequence[str]
    notes: Sequence[str] = ()
    configuration: str | None = None

    @property
    def cases(self) -> Mapping[str, Case]:
        """The cases of the first entrant: every entrant has the same, of the same folds."""
        return self.entrants[0].cases

    @property
    def challengers(self) -> list[str]:
        return [entrant.name for entrant in self.entrants if entrant.name != self.baseline]


def check_entrants(names: Sequence[str], baseline: str) -> None:
    """Raises ValueError unless there are two entrants with different names and the baseline is one of them."""
    if len(set(names)) < len(names):
        raise ValueError(f"named twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
    if len(names) < 2:
        raise ValueError(f"{names[0]} alone cannot be compared: name at least two, the baseline among them")
    if baseline not in names:
        raise ValueError(f"the baseline {baseline!r} is not among those compared; known: {', '.join(names)}")
