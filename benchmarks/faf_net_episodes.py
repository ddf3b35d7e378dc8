"""Training episodes of FAF-Net on encoders of timm: with the encoder in the loop, and with descriptions kept.

python -m benchmarks.faf_net_episodes [--threads 1] [--repeats 5] [--clock wall] [--size 224]

An episode is drawn from supervoxels of a synthetic volume of ten slices, augmented, and makes one optimiser step: loss,
backward pass, clipping and SGD, with the widths of FAFNetFewShotTimmTrainer. Descriptions are in the cache, as they are
after the first epochs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from benchmarks.measure import FLOAT32, Row, interleaved_seconds, median_ratio, run, time_columns, timing_parser
from nnunet_ext.fewshot.described_episodes import DescribedEpisodes
from nnunet_ext.fewshot.episodes import SupervoxelEpisodes
from nnunet_ext.networks import FAFNet
from nnunet_ext.supervoxels import cached_supervoxels

ENCODERS = ("timm:tf_efficientnet_lite0", "timm:resnet50")
CHANNELS = 48
_SLICES, _SPACING, _CASE = 10, (10.0, 1.5, 1.5), "case"
_TRAINED, _FROZEN, _KEPT = "trained, in the loop", "frozen, in the loop", "frozen, descriptions kept"
_MAX_NORM = 12


class Volume:
    """A case in memory, in the form of nnU-Net's datasets."""

    identifiers = (_CASE,)

    def __init__(self, size: int) -> None:
        noise = np.random.default_rng(0).standard_normal((1, _SLICES, size, size))
        self.image: NDArray[np.float32] = ndimage.gaussian_filter(noise, (0, 1, 6, 6)).astype(np.float32) * 20

    def load_case(self, _: str) -> tuple[NDArray[np.float32], None, None, dict[str, Any]]:
        """Image, and no segmentations."""
        return self.image, None, None, {}


class Training:
    """A network with its optimiser and its loader of episodes."""

    def __init__(self, encoder: str, way: str, volume: Volume, folder: Path, size: int) -> None:
        torch.manual_seed(0)
        self.network = FAFNet(
            input_channels=1,
            num_classes=2,
            patch_size=(size, size),
            n_stages=3,
            features_per_stage=(32, 64, 128),
            conv_op=nn.Conv2d,
            kernel_sizes=3,
            strides=2,
            encoder=encoder,
            encoder_frozen=way != _TRAINED,
            feature_channels=CHANNELS,
        ).train()
        self.optimiser = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
        self.described = way == _KEPT
        arguments = (volume, folder, (size, size))
        self.loader: SupervoxelEpisodes
        if self.described:
            self.loader = DescribedEpisodes(*arguments, encoder=self.network.encoder, variants=1)
            while len(self.loader.described) < 4 * _SLICES:
                next(self.loader)
        else:
            self.loader = SupervoxelEpisodes(*arguments)

    def step(self) -> float:
        """An episode and its optimiser step; returns the loss."""
        batch = next(self.loader)
        kind = "described" if self.described else "images"
        episode = self.network(
            batch[f"query_{kind}"],
            batch[f"support_{kind}"],
            batch["support_masks"],
            batch["query_masks"],
            described=self.described,
        )
        loss = episode.query_loss + episode.alignment_loss + episode.prototype_loss
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_NORM)
        self.optimiser.step()
        return loss.item()


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Each encoder in all ways, in turns."""
    volume = Volume(arguments.size)
    with TemporaryDirectory() as folder:
        cached_supervoxels(volume.image, _SPACING, folder, _CASE)
        for encoder in ENCODERS:
            ways = (_TRAINED, _FROZEN, _KEPT)
            steps = {way: Training(encoder, way, volume, Path(folder), arguments.size).step for way in ways}
            times = interleaved_seconds(steps, arguments.repeats, clock=arguments.clock)
            for way in ways:
                yield {
                    "encoder": encoder,
                    "episode": way,
                    "setting": f"{arguments.size}^2, 1 episode, 1 class, {CHANNELS} channels",
                    **FLOAT32,
                    **time_columns(times[way], "ms", "ms", 1),
                    "kept_times_faster": f"{median_ratio(times[way], times[_KEPT]):.2f}",
                }


if __name__ == "__main__":
    parser = timing_parser(__doc__, repeats=5, threads=1)
    parser.add_argument("--size", type=int, default=224)
    run("faf_net_episodes_cpu", rows, parser)
