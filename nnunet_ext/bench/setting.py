"""Settings for measuring networks: a plan's topology, and the networks built on it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.networks import LSTMSA, SALSTM, SASAN, EMNet, FAFNet, MTUNet, UMamba
from nnunet_ext.networks.from_plan import adapted_topology
from nnunet_ext.networks.mt_unet import LEVELS
from nnunet_ext.networks.topology import Topology
from nnunet_ext.nnunet.trainers import build_network, find_trainer, trainer_folder
from nnunet_ext.planning.architecture import unet_architecture
from nnunet_ext.planning.fitting import Candidate, plans_of
from nnunet_ext.utils.fake_modules import built_on_fake_tensors

_MIN_EDGE, _MAX_POOLINGS = 4, 5
_BASE_WIDTH, _MAX_WIDTH = 32, {2: 512, 3: 320}
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)
"""Residual blocks per stage of nnU-Net's residual encoder."""
_UNETS = ("PlainConvUNet", "ResidualEncoderUNet")
_OURS = "nnunet_ext.networks."


@dataclass(frozen=True)
class Setting:
    """Topology and batch with which networks are built and measured.

    Attributes:
        patch_size: P in voxels.
        strides: Strides into each stage, per axis.
        kernel_sizes: Kernel sizes per stage and axis.
        batch_size: Samples per batch of a training step; a forward pass has one.
        input_channels: M, the number of modalities.
        num_classes: K, the number of logits.
        widths: Features of every stage; None: nnU-Net's.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    batch_size: int = 2
    input_channels: int = 1
    num_classes: int = 3
    widths: tuple[int, ...] | None = None

    @classmethod
    def of_patch(cls, patch_size: tuple[int, ...], batch_size: int = 2, option: str = "--patch") -> "Setting":
        """The setting that nnU-Net plans for a patch of isotropic voxels.

        Args:
            patch_size: P.
            batch_size: B.
            option: Name of the patch in error messages.

        Raises:
            ValueError: for a patch that is not 2D or 3D, or that is not divisible by nnU-Net's poolings.
        """
        from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

        if len(patch_size) not in _MAX_WIDTH:
            raise ValueError(f"{option} {' '.join(map(str, patch_size))} must have two or three sizes")
        _, strides, kernels, padded, _ = get_pool_and_conv_props(
            [1.0] * len(patch_size), list(patch_size), _MIN_EDGE, _MAX_POOLINGS
        )
        planned = tuple(int(size) for size in padded)
        if planned != tuple(patch_size):
            raise ValueError(
                f"{option} {' '.join(map(str, patch_size))} cannot be halved as often as nnU-Net would; "
                f"nearest: {' '.join(map(str, planned))}"
            )
        return cls(
            planned,
            tuple(tuple(int(s) for s in stage) for stage in strides),
            tuple(tuple(int(k) for k in stage) for stage in kernels),
            batch_size,
        )

    @classmethod
    def of_plan(cls, plans: Path, configuration: str) -> "Setting":
        """The setting of an nnU-Net plans file, which has its dataset.json in the same folder.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: for an unknown configuration (lists the known ones), or a plan for one of our networks, whose
                topology does not suit all networks.
        """
        from nnunet_ext.nnunet.plan_settings import read_plan

        setting = read_plan(plans, configuration)
        chosen = setting.configuration
        planned = chosen.network_arch_class_name
        arguments = chosen.network_arch_init_kwargs
        missing = {"strides", "kernel_sizes", "features_per_stage"} - arguments.keys()
        if missing or planned.startswith(_OURS):
            raise ValueError(
                f"{plans} is a plan for {planned}; every network is measured on the topology of one of nnU-Net's own: "
                f"give a plan for {' or '.join(_UNETS)}, nnUNetPlans.json for instance"
            )
        return cls(
            tuple(chosen.patch_size),
            strides=tuple(map(tuple, arguments["strides"])),
            kernel_sizes=tuple(map(tuple, arguments["kernel_sizes"])),
            batch_size=chosen.batch_size,
            input_channels=setting.input_channels,
            num_classes=setting.num_classes,
            widths=tuple(arguments["features_per_stage"]),
        )

    @property
    def features(self) -> tuple[int, ...]:
        """Features of every stage: the plan's, or those that nnU-Net would choose."""
        if self.widths is not None:
            return self.widths
        widest = _MAX_WIDTH[len(self.patch_size)]
        return tuple(min(widest, _BASE_WIDTH << stage) for stage in range(len(self.strides)))

    @property
    def features_in_words(self) -> str:
        return " ".join(map(str, self.features))

    def topology(self) -> dict[str, Any]:
        """Arguments of our networks that come from a plan."""
        return {
            "patch_size": self.patch_size,
            "n_stages": len(self.strides),
            "features_per_stage": self.features,
            "conv_op": nn.Conv2d if len(self.patch_size) == 2 else nn.Conv3d,
            "kernel_sizes": self.kernel_sizes,
            "strides": self.strides,
        }

    def build(self, name: str, deep_supervision: bool = True) -> nn.Module:
        """A network in this setting, with a fixed seed; call `show` before it predicts.

        Args:
            name: A name of `NETWORKS`, or of any trainer, which builds its network as it does from a plan.
            deep_supervision: Whether to build its outputs at lower resolutions.

        Raises:
            ValueError: for an unknown name, or a network that does not fit the setting.
        """
        torch.manual_seed(0)
        if name in NETWORKS:
            return NETWORKS[name](self, deep_supervision)
        if trainer_folder(name) is None:
            raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}, and the names of trainers")
        return self._trainers_network(name, deep_supervision)

    def _trainers_network(self, name: str, deep_supervision: bool) -> nn.Module:
        topology = Topology.create(**self.topology(), divisible=False)
        plans = PlansManager(plans_of(Candidate(unet_architecture(topology), self.patch_size), self.batch_size))
        try:
            return built_on_fake_tensors(  # where multiply-adds are counted on fake tensors
                lambda: build_network(
                    find_trainer(name),
                    plans,
                    plans.get_configuration("traced"),
                    input_channels=self.input_channels,
                    num_classes=self.num_classes,
                    deep_supervision=deep_supervision,
                )
            )
        except Exception as error:  # of a user's constructor
            raise ValueError(f"{name} builds no network for {self.patch_size}: {error}") from error

    def show(self, network: nn.Module) -> nn.Module:
        """Gives a few-shot network the support slice that it needs for prediction; leaves others unchanged."""
        if isinstance(network, FAFNet):
            network.set_support(torch.randn(1, self.input_channels, *self.patch_size[-2:]), self._squares(1))
        return network

    def images(self, batch_size: int) -> torch.Tensor:
        """Random images."""
        torch.manual_seed(1)
        return torch.randn(batch_size, self.input_channels, *self.patch_size)

    def training_inputs(self, network: nn.Module) -> tuple[torch.Tensor, ...]:
        """A batch for a training step of a network.

        For a few-shot network this is an episode: slices of the batch, and as many support slices of every class, with
        their masks, as FAFNetTrainer uses.
        """
        images = self.images(self.batch_size)
        if not isinstance(network, FAFNet):
            return (images,)
        from nnunet_ext.training import FAFNetLabelTrainer

        if images.ndim == 5:
            images = images[:, :, : FAFNetLabelTrainer.max_slices].movedim(2, 1).flatten(0, 1)
        classes = self.num_classes - 1
        shots = FAFNetLabelTrainer.shots * classes
        return images[None], torch.randn(1, shots, *images.shape[1:]), self._squares(shots)[None]

    def _squares(self, slices: int) -> torch.Tensor:
        """Masks of every class except background, covering a quarter of each slice."""
        height, width = self.patch_size[-2:]
        masks = torch.zeros(slices, self.num_classes - 1, height, width)
        masks[..., : height // 2, : width // 2] = 1
        return masks


def _ours(network: type[nn.Module], **further: Any) -> Callable[[Setting, bool], nn.Module]:
    def build(setting: Setting, deep_supervision: bool) -> nn.Module:
        arguments = adapted_topology(network, setting.topology())
        return network(
            setting.input_channels, setting.num_classes, **arguments, **further, deep_supervision=deep_supervision
        )

    return build


def _mt_unet(setting: Setting, deep_supervision: bool) -> nn.Module:
    if len(setting.patch_size) == 3:
        raise ValueError("MT-UNet is a 2D network; give a --patch of two sizes")
    if any(size % 2 ** (LEVELS - 1) for size in setting.patch_size):
        raise ValueError(f"MT-UNet needs a --patch divisible by {2 ** (LEVELS - 1)}, got {setting.patch_size}")
    return MTUNet(setting.input_channels, setting.num_classes, setting.patch_size)


def _stock(residual: bool) -> Callable[[Setting, bool], nn.Module]:
    """nnU-Net's own networks with the arguments that its planners use."""

    def build(setting: Setting, deep_supervision: bool) -> nn.Module:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

        topology = setting.topology()
        del topology["patch_size"]
        stages = len(setting.strides)
        blocks: dict[str, Any] = (
            {"n_blocks_per_stage": _RESIDUAL_BLOCKS[:stages], "n_conv_per_stage_decoder": 1}
            if residual
            else {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
        )
        return (ResidualEncoderUNet if residual else PlainConvUNet)(
            setting.input_channels,
            **topology,
            num_classes=setting.num_classes,
            **blocks,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if len(setting.patch_size) == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=deep_supervision,
        )

    return build


NETWORKS: dict[str, Callable[[Setting, bool], nn.Module]] = {
    "PlainConvUNet": _stock(residual=False),
    "ResidualEncoderUNet": _stock(residual=True),
    "SASAN": _ours(SASAN),
    "EM-Net": _ours(EMNet),
    "SALSTM": _ours(SALSTM),
    "LSTMSA": _ours(LSTMSA),
    "FAF-Net": _ours(FAFNet, encoder="plan"),
    "MT-UNet": _mt_unet,
    "U-Mamba Enc": _ours(UMamba, variant="Enc"),
    "U-Mamba Bot": _ours(UMamba, variant="Bot"),
    "U-Mamba Bot without Mamba": _ours(UMamba, variant="no_mamba"),
}
"""Networks that can be measured: nnU-Net's and ours."""
