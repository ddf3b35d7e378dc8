"""User-configurable settings of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_ext.compare.empty_labels import EMPTY_RULES, EmptyRule

DEFAULT_TOLERANCE = 2.0


@dataclass(frozen=True)
class Settings:
    """User-configurable settings.

    Attributes:
        margin: Largest difference in Dice that does not matter, from 0 to 1.
        tolerance: Tolerance of the surface Dice in mm (natural images: pixels) for labels without one of their own.
        tolerances: Tolerance by label.
        seed: Seed of the bootstrap.
        timed: Whether the seconds in the logs measure the cost of the networks.
        empty_labels: How a label is scored in cases that do not have it: `score` or `rate`, see `apply_rule`.
        lesions: Labels whose lesions, the connected components, are counted.
    """

    margin: float = 0.005
    tolerance: float = DEFAULT_TOLERANCE
    tolerances: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    timed: bool = True
    empty_labels: EmptyRule = "score"
    lesions: Sequence[str] = ()

    def tolerance_of(self, labels: Sequence[str]) -> dict[str, float]:
        """Tolerance of every label.

        Raises:
            ValueError: if a tolerance names an unknown label.
        """
        unknown = [name for name in self.tolerances if name not in labels]
        if unknown:
            raise ValueError(f"--tolerance {unknown[0]}=...: no such label; known: {', '.join(labels)}")
        return {name: self.tolerances.get(name, self.tolerance) for name in labels}

    def check_lesions(self, labels: Sequence[str]) -> None:
        """Raises ValueError if the lesions of an unknown label are to be counted."""
        unknown = [name for name in self.lesions if name not in labels]
        if unknown:
            raise ValueError(f"--lesions {unknown[0]}: no such label; known: {', '.join(labels)}")

    def check(self) -> None:
        """Raises ValueError for a margin or a tolerance that is not above zero, and for an unknown rule."""
        amounts = {"margin": self.margin, "tolerance": self.tolerance}
        amounts |= {f"tolerance of {name}": value for name, value in self.tolerances.items()}
        for name, value in amounts.items():
            if not value > 0:
                raise ValueError(f"`{name}`={value:g} must be above 0")
        if self.empty_labels not in EMPTY_RULES:
            raise ValueError(f"`empty_labels`={self.empty_labels!r} is unknown; known: {', '.join(EMPTY_RULES)}")


def parse_tolerances(texts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The general tolerance, and those of single labels, from arguments such as 2 and liver=3.

    Raises:
        ValueError: for an argument that is neither a number nor LABEL=NUMBER, or a second general tolerance.
    """
    general, single = [], {}
    for text in texts:
        name, separator, amount = text.rpartition("=")
        try:
            value = float(amount)
        except ValueError as error:
            raise ValueError(f"--tolerance {text!r} must be a number or LABEL=NUMBER, for example liver=3") from error
        if separator:
            single[name] = value
        else:
            general.append(value)
    if len(general) > 1:
        raise ValueError(f"--tolerance has {len(general)} numbers without a label; give one, and LABEL=NUMBER")
    return (general or [DEFAULT_TOLERANCE])[0], single
