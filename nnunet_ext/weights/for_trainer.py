"""Weights of other programs for the network of any trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ext.nnunet.plan_settings import PlanSetting
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.utils.messages import some_of


def for_trainer(
    trainer: str, state_dict: Mapping[str, Tensor], setting: PlanSetting, initial: Sequence[str] = ()
) -> nn.Module:
    """Builds the network that a trainer trains on a plan, with weights from a state dict.

    The names must be the network's own, unless the trainer has a static method `convert_weights`, which gets the state
    dict and returns one with the network's names.

    Args:
        trainer: Name of a trainer of ours, of nnU-Net's or of the user's.
        state_dict: Names and values of the weights.
        setting: The plan's setting.
        initial: Parts of names; the weights whose names contain one of them keep the network's initial values, such as
            the last layers for another number of classes.

    Raises:
        ValueError: for an unknown trainer, or weights that are missing, unexpected or of another shape (lists them).
    """
    found: Any = find_trainer(trainer)
    network: nn.Module = setting.network(found, deep_supervision=True)
    convert = getattr(found, "convert_weights", None)
    given = dict(state_dict if convert is None else convert(dict(state_dict)))
    own = network.state_dict()

    def keeps(name: str) -> bool:
        return any(part in name for part in initial)

    unused = [part for part in initial if not any(part in name for name in own)]
    if unused:
        raise ValueError(f"no weights of {trainer}'s network have {some_of(unused)} in their names")
    taken = {name: value for name, value in given.items() if not keeps(name)}
    faults = {
        "missing": [name for name in own if name not in taken and not keeps(name)],
        "unexpected": [name for name in taken if name not in own],
        "of another shape": [
            f"{name} ({_sizes(value)} instead of {_sizes(own[name])})"
            for name, value in taken.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    told = [f"{what}: {some_of(names, 3)}" for what, names in faults.items() if names]
    if told:
        raise ValueError(
            f"these are no weights for the network of {trainer} on this plan; {'; '.join(told)}. Other names are "
            f"translated by a static method `convert_weights` of the trainer; weights that may keep their initial "
            f"values are named by `initial`"
        )
    network.load_state_dict(own | taken)
    return network.eval()


def _sizes(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"
