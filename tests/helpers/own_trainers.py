"""Files of trainers as users write them, outside the package."""

import os
from pathlib import Path

from nnunet_ext.nnunet.trainers import trainers_folder

OWN = '''import torch
from torch import nn

from nnunet_ext.training import PluginTrainer


class Halving(nn.Module):
    """Needs patches divisible by 8; with deep supervision it returns (coarse, fine) by the names of its own."""

    def __init__(self, in_channels, out_channels, dims, deep_supervision=False, slope=0.0):
        super().__init__()
        conv, up = (nn.Conv2d, nn.ConvTranspose2d) if dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.down, self.up = conv(in_channels, 4, 8, stride=8), up(4, 4, 8, stride=8)
        self.coarse, self.fine = conv(4, out_channels, 1), conv(4 + in_channels, out_channels, 1)
        self.slope, self.deep_supervision = slope, deep_supervision

    def forward(self, x):
        y = nn.functional.leaky_relu(self.down(x), self.slope)
        fine = self.fine(torch.cat([self.up(y), x], 1))
        return {"coarse": self.coarse(y), "fine": fine} if self.deep_supervision else {"fine": fine}


class HalvingTrainer(PluginTrainer):
    network_class = Halving
    network_settings = {"slope": 0.2}

    @classmethod
    def network_arguments(cls, topology, input_channels, num_classes):
        return {"in_channels": input_channels, "out_channels": num_classes, "dims": topology.spatial_dims}

    @staticmethod
    def network_outputs(outputs):
        return [outputs[name] for name in ("fine", "coarse") if name in outputs]


class DeclaredTrainer(HalvingTrainer):
    patch_multiple = (1, 8, 24)


class TranslatingTrainer(HalvingTrainer):
    @staticmethod
    def convert_weights(state_dict):
        return {name.removeprefix("theirs."): value for name, value in state_dict.items()}
'''
OLD = '''import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


class OldTrainer(nnUNetTrainer):
    """Knows nothing of us, and has nnU-Net's former signature."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 1, 1

    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        conv = nn.Conv2d if "Conv2d" in arch_init_kwargs["conv_op"] else nn.Conv3d
        return nn.Sequential(conv(num_input_channels, 8, 3, padding=1), nn.ReLU(), conv(8, num_output_channels, 1))

    def set_deep_supervision_enabled(self, enabled):
        pass
'''
WRONG = """import torch
from torch import nn

from nnunet_ext.training import PluginTrainer


class Wrong(nn.Module):
    def __init__(self, input_channels, num_classes, conv_op):
        super().__init__()
        self.head, self.unused = conv_op(input_channels, num_classes, 1), conv_op(1, 1, 1)

    def forward(self, x):
        return self.head(x * x.new_tensor(30000)) / self.head(x).mean(0)


class WrongTrainer(PluginTrainer):
    network_class = Wrong


class RefusingTrainer(PluginTrainer):
    network_class = Wrong

    @classmethod
    def network_arguments(cls, topology, input_channels, num_classes):
        return {"channels": input_channels}


class MissingTrainer(PluginTrainer):
    network_class = "no_such_package.networks.Net"
"""


def write_own_trainers(folder: Path) -> str:
    """Writes the files; returns the value of `nnUNet_extTrainer` that finds their classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("own_networks", OWN), ("old_trainer", OLD), ("wrong_networks", WRONG)):
        (folder / f"{name}.py").write_text(text)
    return os.pathsep.join([str(folder), str(trainers_folder())])
