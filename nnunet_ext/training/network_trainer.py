"""The contract of a trainer and its network: any class of any module, built from nnU-Net's plans."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_ext.networks.from_plan import network_from_plan, output_scales, vocabulary
from nnunet_ext.networks.outputs import adopt, switch_deep_supervision
from nnunet_ext.networks.own import is_ours, locate_network, takes
from nnunet_ext.networks.topology import Topology
from nnunet_ext.nnunet.checkpoints import refuse_misfits
from nnunet_ext.profiling.outputs import measured_scales
from nnunet_ext.utils.torch_private import uncompiled


class NetworkTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a network class of any module.

    Subclasses describe their network by the class attributes and class methods below. `nnunet_ext plan`, `crossval`,
    `compare`, `bench` and `networks`, training and prediction read them from the class, wherever it stands
    (docs/own_network.md). A class with nnU-Net's constructor vocabulary needs `network_class` alone.
    """

    network_class: type[nn.Module] | str | None = None
    """Any class, or its dotted name, which is imported where the network is built; None: the plan's own network."""
    network_settings: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of the constructor, which add to those of the bases and override a plan's."""
    has_lower_outputs: bool | None = None
    """Whether the network has several outputs, for deep supervision; None: if its constructor has a parameter
    `deep_supervision`."""
    patch_multiple: int | tuple[int, ...] = 1
    """Sizes of a patch are multiples of this: one number, or one per axis, of which 2D uses the last two. A network
    whose constructor takes `strides` needs multiples of their products besides, which planning knows."""
    poolings = 0
    """Smallest number of poolings in a plan that the network works with."""
    convert_weights: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None
    """Static method from the state dict of published weights to one with the network's names, for
    `nnunet_ext import-weights`; None: the names are the network's."""
    idle_parameters: tuple[str, ...] = ()
    """Endings of the names of parameters whose gradients may be exactly 0 on small patches; for `nnunet_ext check`."""
    planner: type | str | None = None
    """Class of the planner, or its dotted name; None: that of the network, or one that follows these attributes."""
    _measured_scales: list[list[float]] | None = None

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        """Returns the arguments of the network's constructor, to which `network_settings` are added.

        By default these are nnU-Net's (`input_channels`, `num_classes`, `patch_size`, `n_stages`, `features_per_stage`,
        `conv_op`, `kernel_sizes`, `strides`), as far as the constructor takes them. Override it for a constructor with
        other names. A parameter `deep_supervision` is set by the trainer.

        Args:
            topology: Patch, stages, features, kernels and strides of the plan.
            input_channels: Channels of the input.
            num_classes: Number of logits.
        """
        network = cls.located_network()
        assert network is not None, "without a network class the plan's own network is built"
        return vocabulary(network, topology, input_channels, num_classes)

    network_outputs: Callable[[Any], Any] | None = None
    """Static method from what the network returns to a tensor of logits, or to several, the finest first; None: the
    network returns these itself. Without deep supervision only the first of several is used."""

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Called by training on the trainer and by prediction on its class."""
        network: nn.Module
        network_class = cls.located_network()
        if network_class is None:
            network = nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        else:
            supervised = enable_deep_supervision and cls.supervises_lower_outputs()
            network = network_from_plan(
                network_class,
                configuration_manager,
                num_input_channels,
                num_output_channels,
                supervised,
                network_arguments=cls.network_arguments,
                **cls.all_network_settings(),
            )
            adopt(network, cls.network_outputs, supervised)
        network.register_load_state_dict_pre_hook(refuse_misfits)
        return network

    @classmethod
    def all_network_settings(cls) -> dict[str, Any]:
        """`network_settings` of the class, over those of its bases."""
        merged: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            merged |= vars(base).get("network_settings", {})
        return merged

    @classmethod
    def located_network(cls) -> type[nn.Module] | None:
        """The class that `network_class` is or names.

        Raises:
            ValueError: if it cannot be imported.
        """
        return None if cls.network_class is None else locate_network(cls.network_class)

    @classmethod
    def supervises_lower_outputs(cls) -> bool:
        """`has_lower_outputs`, or what the network's constructor tells."""
        if cls.has_lower_outputs is not None:
            return cls.has_lower_outputs
        network = cls.located_network()
        return network is None or takes(network, "deep_supervision")

    @property
    def plain_network(self) -> nn.Module:
        """The network without what DDP and torch.compile wrap it in."""
        return uncompiled(self.network.module if self.is_ddp else self.network)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        switch_deep_supervision(self.plain_network, enabled and self.enable_deep_supervision)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """The true sizes of the network's outputs, which nnU-Net would read off the plan's strides."""
        network = self.located_network()
        if network is None or not self.enable_deep_supervision:
            return super()._get_deep_supervision_scales()
        if is_ours(network):
            return output_scales(network, self.configuration_manager)
        if self._measured_scales is None:
            heads = self.label_manager.num_segmentation_heads
            self._measured_scales = measured_scales(
                lambda channels: self.build_network_architecture(
                    self.plans_manager, self.configuration_manager, channels, heads, True
                ),
                self.num_input_channels,
                self.configuration_manager.patch_size,
            )
        return self._measured_scales
