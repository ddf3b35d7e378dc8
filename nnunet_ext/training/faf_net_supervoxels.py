"""Training of FAF-Net without labels, the paper's protocol: episodes from supervoxels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.fewshot.described_episodes import DescribedEpisodes
from nnunet_ext.fewshot.episodes import SupervoxelEpisodes
from nnunet_ext.fewshot.left_out import LEFT_OUT, class_values, slices_left_out
from nnunet_ext.supervoxels import SupervoxelParameters
from nnunet_ext.supervoxels.preparation import make_supervoxels
from nnunet_ext.training.faf_net import FAFNetBaseTrainer


class FAFNetSupervoxelTrainer(FAFNetBaseTrainer):
    """Episodes from supervoxels of the training images; labels give the support for prediction but train no weight.

    Supervoxels are made at the first start and kept beside the preprocessed data. The loss is the authors' sum of a
    query, an alignment and a prototype loss. nnU-Net's validation, and with it the choice of checkpoint_best, uses
    labels as always. If the plans name `left_out_classes`, no episode uses a slice that shows one of them (setting 2).

    Subclasses set `network_settings` and may change `episodes`, `classes` and `supervoxel_parameters`.
    """

    episodes = 1
    """Episodes per batch, each with one support and one query slice; the authors' number is 1."""
    classes = 1
    """Supervoxels per episode, each of which is a class; the authors' number is 1."""
    supervoxel_parameters = SupervoxelParameters()
    described_variants = 4
    """Variants of each augmented slice that a frozen encoder of timm describes, once; 0: every slice of every episode
    is augmented and encoded anew. See `DescribedEpisodes`."""
    cache_gigabytes = 4.0
    """Memory for descriptions, per process."""

    def initialize(self) -> None:
        class_values(self.dataset_json["labels"], self.left_out_classes)  # complains of unknown ones
        super().initialize()

    @property
    def left_out_classes(self) -> list[str]:
        """Names of the classes whose slices train nothing, from the plans."""
        return list(self.plans_manager.plans.get(LEFT_OUT, ()))

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {LEFT_OUT: self.left_out_classes}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if (before := state.get(LEFT_OUT, [])) != self.left_out_classes:
            raise ValueError(
                f"the checkpoint was trained with `{LEFT_OUT}`={before}, the plans have {self.left_out_classes}: "
                "resume with the plans that it was trained with, or move the folder of this fold away and train again"
            )
        super().load_extra_state(state)

    def get_dataloaders(self) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
        """Episodes for training, nnU-Net's loader for validation."""
        unused, validation = super().get_dataloaders()
        if isinstance(unused, NonDetMultiThreadedAugmenter):
            unused._finish()
        self._make_supervoxels()
        cases, _ = self.get_tr_and_val_datasets()
        loader = self.episode_loader(
            cases,
            self.supervoxel_folder,
            self.configuration_manager.patch_size[-2:],
            episodes=self.episodes,
            one_hot=self.one_hot_labels,
            classes=self.classes,
            left_out=self._slices_left_out(cases),
        )
        workers = 0 if self.describes_slices else get_allowed_n_proc_DA()  # the cache is this process's
        if workers == 0:
            return SingleThreadedAugmenter(loader, None), validation
        training = NonDetMultiThreadedAugmenter(
            loader, None, workers, num_cached=max(6, workers // 2), pin_memory=self.device.type == "cuda"
        )
        return training, validation

    @property
    def describes_slices(self) -> bool:
        """Whether episodes hold descriptions of slices, which a frozen encoder makes once."""
        return self.described_variants > 0 and self.plain_network.encoder.can_be_cached

    def episode_loader(self, *arguments: Any, **settings: Any) -> SupervoxelEpisodes:
        """The loader of episodes, of images or of their descriptions."""
        if not self.describes_slices:
            return SupervoxelEpisodes(*arguments, **settings)
        return DescribedEpisodes(
            *arguments,
            **settings,
            encoder=self.plain_network.encoder,
            variants=self.described_variants,
            gigabytes=self.cache_gigabytes,
        )

    @property
    def supervoxel_folder(self) -> Path:
        """Folder below the preprocessed data, where nnU-Net accepts no files of another kind."""
        return Path(self.preprocessed_dataset_folder) / "supervoxels"

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        kind = "described" if self.describes_slices else "images"
        episode = self.network(
            batch[f"query_{kind}"],
            batch[f"support_{kind}"],
            batch["support_masks"],
            batch["query_masks"],
            described=self.describes_slices,
        )
        return episode.query_loss + episode.alignment_loss + episode.prototype_loss, episode

    def example_batch(self, _: int) -> dict[str, Tensor]:
        """A batch in the shapes of the loader, with the same number of episodes for any batch size."""
        size = tuple(self.configuration_manager.patch_size[-2:])
        shapes = {"images": (self.num_input_channels, *size), "masks": (self.classes, *size)}
        if self.describes_slices:
            encoder = self.plain_network.encoder
            shapes["described"] = (encoder.backbone.width, *encoder.grid(size))
            del shapes["images"]
        return {
            f"{role}_{kind}": torch.empty(self.episodes, 1, *shape, device=self.device)
            for role in ("support", "query")
            for kind, shape in shapes.items()
        }

    def _make_supervoxels(self) -> None:
        training, _ = self.get_tr_and_val_datasets()
        cases = sorted(training.identifiers)
        self.print_to_log_file(f"Supervoxels of {len(cases)} images in {self.supervoxel_folder}")
        ranks = torch.distributed.get_world_size() if self.is_ddp else 1
        make_supervoxels(
            training,
            cases[self.local_rank :: ranks],
            self.supervoxel_folder,
            spacing=self._spacing,
            parameters=self.supervoxel_parameters,
            masked=any(self.configuration_manager.use_mask_for_norm),
            threads=max(1, get_allowed_n_proc_DA()),
        )
        if self.is_ddp:
            torch.distributed.barrier()

    def _slices_left_out(self, dataset: Any) -> dict[str, NDArray[np.bool_]] | None:
        if not self.left_out_classes:
            return None
        values = class_values(self.dataset_json["labels"], self.left_out_classes)
        found = slices_left_out(
            dataset,
            sorted(dataset.identifiers),
            sorted({value for of_class in values.values() for value in of_class}),
            self.label_manager.ignore_label,
        )
        number, total = (sum(int(count(slices)) for slices in found.values()) for count in (np.count_nonzero, len))
        self.print_to_log_file(
            f"Left out of training: {number} of {total} slices, which show {', '.join(self.left_out_classes)}"
        )
        return found

    def _spacing(self, properties: dict) -> list[float]:
        """Spacing of a preprocessed case; in 2D configurations the distance of slices is the original one."""
        between_slices = properties["spacing"][self.plans_manager.transpose_forward[0]]
        planned = list(self.configuration_manager.spacing)
        return planned if len(planned) == 3 else [between_slices, *planned]
