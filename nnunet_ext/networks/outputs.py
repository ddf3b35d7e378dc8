"""Any network's outputs in nnU-Net's form, and the switch of its deep supervision."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_ATTRIBUTE = "nnunet_ext_logits"


class Logits:
    """A forward hook that brings the outputs of any network to nnU-Net's form.

    Without deep supervision a network gives one tensor of logits, otherwise a list of them, the finest first.

    Args:
        convert: Function from what the network returns to a tensor, or to a list or tuple of tensors.
        deep_supervision: Whether all of several outputs are returned, or the first alone.
    """

    def __init__(self, convert: Callable[[Any], Any], deep_supervision: bool) -> None:
        self.convert, self.deep_supervision = convert, deep_supervision

    def __call__(self, network: nn.Module, inputs: Any, outputs: Any) -> Tensor | list[Tensor]:
        converted = self.convert(outputs)
        if isinstance(converted, (list, tuple)):
            return list(converted) if self.deep_supervision else converted[0]
        return converted


def follows_nnunet(network: nn.Module) -> bool:
    """Whether a network has nnU-Net's own switch, ``network.decoder.deep_supervision``."""
    return hasattr(getattr(network, "decoder", None), "deep_supervision")


def adopt(network: nn.Module, convert: Callable[[Any], Any] | None, deep_supervision: bool) -> None:
    """Brings a network's outputs to nnU-Net's form, by a hook, unless it has nnU-Net's own switch.

    Args:
        network: Any network.
        convert: As for `Logits`; None: the outputs are logits already.
        deep_supervision: As for `Logits`.
    """
    if convert is None and follows_nnunet(network):
        return
    hook = Logits(convert or _unchanged, deep_supervision)
    network.register_forward_hook(hook)
    setattr(network, _ATTRIBUTE, hook)


def has_switch(network: nn.Module) -> bool:
    """Whether `switch_deep_supervision` switches a network."""
    return follows_nnunet(network) or hasattr(network, _ATTRIBUTE)


def switch_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Switches between all outputs and the finest alone, for nnU-Net's networks and adopted ones; else does nothing."""
    if follows_nnunet(network):
        network.decoder.deep_supervision = enabled  # type: ignore[union-attr]
    hook = getattr(network, _ATTRIBUTE, None)
    if hook is not None:
        hook.deep_supervision = enabled


def supervise_in_evaluation(network: nn.Module) -> None:
    """Lets an adopted network that returns its lower outputs only in training mode return them in evaluation too.

    nnU-Net validates with them. The mode of the network's own class is set for the call, as deep supervision is
    switched; its blocks stay in the mode that they are in.
    """
    mode = _ModeOfCall()
    network.register_forward_pre_hook(mode.enter)
    network.register_forward_hook(mode.leave, always_call=True)


class _ModeOfCall:
    """Hooks that set the mode of a network's own class for a call, and restore it."""

    def __init__(self) -> None:
        self.before = True

    def enter(self, network: nn.Module, inputs: Any) -> None:
        self.before = network.training
        network.training = getattr(network, _ATTRIBUTE).deep_supervision

    def leave(self, network: nn.Module, inputs: Any, outputs: Any) -> None:
        network.training = self.before


def _unchanged(outputs: Any) -> Any:
    return outputs
