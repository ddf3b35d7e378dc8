"""Models as nnU-Net names them: a trainer on a plan."""

from collections.abc import Sequence


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
