"""Groups of parameters with and without weight decay."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

_NOT_DECAYED = ("A_log", "D", "gamma", "pos", "position_embeddings", "relative_position_bias_table")
"""Names of parameters that are not weights of a linear map: rates and direct paths of a state space model (Mamba marks
them likewise), scales of residual branches, and absolute and relative position embeddings."""


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: weights with decay; norms, biases, scales, positions and rates without.

    Decay pulls parameters towards 0, which is neutral for a weight of a linear map, but not for the scale of a norm or
    for a rate: without a gradient, AdamW with 1e-3 and 1e-2 shrinks them to a third within 1000 epochs.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        plain = parameter.ndim <= 1 or name.rpartition(".")[2] in _NOT_DECAYED
        (kept if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def load_ungrouped(optimizer: Optimizer, network: nn.Module) -> None:
    """Lets an optimiser of several groups load the state of an optimiser with a single group.

    Checkpoints of earlier versions have such states. Rate and moments are taken over; each group keeps its decay.
    """
    order = {parameter: number for number, parameter in enumerate(network.parameters())}

    def regroup(own: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        if len(state["param_groups"]) != 1 or len(own.param_groups) == 1:
            return None
        (old,) = state["param_groups"]
        groups, moments, first = [], {}, 0
        for group in own.param_groups:
            numbers = range(first, first + len(group["params"]))
            for number, parameter in zip(numbers, group["params"], strict=True):
                before = old["params"][order[parameter]]
                if before in state["state"]:
                    moments[number] = state["state"][before]
            groups.append(old | {"weight_decay": group["weight_decay"], "params": list(numbers)})
            first = numbers.stop
        return state | {"state": moments, "param_groups": groups}

    hook: Callable[..., Any] = regroup
    optimizer.register_load_state_dict_pre_hook(hook)
