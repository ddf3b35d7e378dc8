"""Models as nnU-Net names them: a trainer on a plan."""

import re
from collections.abc import Sequence
from pathlib import Path

_FOLD = re.compile(r"fold_(\d+|all)")


def fold_names(model: Path) -> list[str]:
    """Folds of a model's folder: 0, 1, ... or all. A folder of another name is a fold that somebody has put aside."""
    found = (_FOLD.fullmatch(path.name) for path in model.glob("fold_*"))
    return sorted((match[1] for match in found if match), key=lambda name: (len(name), name))


def pair_plans(trainers: Sequence[str], plans: Sequence[str]) -> list[tuple[str, str]]:
    """Trainers with their plans.

    Args:
        trainers: Names.
        plans: One name for all trainers, or one for each.

    Raises:
        ValueError: for another number of plans.
    """
    if len(plans) not in (1, len(trainers)):
        raise ValueError(f"-p has {len(plans)} names for {len(trainers)} trainers; give one for all or one for each")
    several = list(plans) if len(plans) > 1 else [plans[0]] * len(trainers)
    return list(zip(trainers, several, strict=True))
