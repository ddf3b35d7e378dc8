"""A trained FAF-Net as a tool for classes that it was not trained on."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.fewshot.grid_prototypes import GridPrototypes
from nnunet_ext.fewshot.protocol import query_parts, shown_slices
from nnunet_ext.fewshot.slices import image_slice, window, window_start
from nnunet_ext.fewshot.surroundings import surroundings
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.head import logit
from nnunet_ext.nnunet.label_maps import align, read_label_map
from nnunet_ext.nnunet.scans import Scan, read_scan
from nnunet_ext.nnunet.trained_model import DEFAULT_CHECKPOINT, load_predictor
from nnunet_ext.utils.torch_private import uncompiled

_TILE_STEP = 0.5  # nnU-Net's


class FewShotModel:
    """FAF-Net from a folder of nnU-Net's results, with the preprocessing that it was trained on.

    Call `show` once, with the classes to look for, then `segment` for each scan. The support is encoded once.

    Args:
        folder: ``TRAINER__PLANS__CONFIGURATION`` of nnU-Net's results, or an installed model.
        device: Name of torch's device.
        folds: Folds to load; None: all trained ones. Several are averaged, as nnU-Net does.
        checkpoint: Name of the checkpoint in the folders of the folds.

    Raises:
        FileNotFoundError: if the folder does not hold a trained model.
        ValueError: if its network is not FAF-Net, or needs the segmentation of a previous stage, and as
            `load_predictor`.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        folds: Sequence[int | str] | None = None,
        checkpoint: str = DEFAULT_CHECKPOINT,
    ) -> None:
        predictor = load_predictor(folder, device, folds, checkpoint, perform_everything_on_device=False)
        network = uncompiled(predictor.network)
        if not isinstance(network, FAFNet):
            raise ValueError(
                f"{folder} holds {type(network).__name__} of {predictor.trainer_name}, which cannot learn a class from "
                "a support; give a model of FAFNetFewShotTrainer or FAFNetTrainer"
            )
        self.plans, self.configuration = predictor.plans_manager, predictor.configuration_manager
        if self.configuration.previous_stage_name is not None:
            raise ValueError(f"{folder} needs the segmentation of a previous stage, which new classes do not have")
        self.device, self.dataset = torch.device(device), predictor.dataset_json
        self.channels = determine_num_input_channels(self.plans, self.configuration, self.dataset)
        self.reader = self.plans.image_reader_writer_class()
        self.networks: list[Any] = []
        for weights in predictor.list_of_parameters:
            network.load_state_dict(weights)
            self.networks.append(deepcopy(network).to(self.device).eval())
        self.labels: tuple[int, ...] = ()
        self.shown_values: frozenset[int] = frozenset()
        """Values in the support masks, background included."""
        self.supports: list[list[Any]] = []
        """Encoded supports, by fold and part."""

    @property
    def endings(self) -> list[str]:
        """File endings that the dataset's reader reads."""
        return list(self.reader.supported_file_endings)

    def by_local_prototypes(self) -> "FewShotModel":
        """The same model, still without a support, with `GridPrototypes` of the networks' features in their place."""
        return self.with_networks([GridPrototypes(network, projected=True) for network in self.networks])

    def with_networks(self, networks: Sequence[Any]) -> "FewShotModel":
        """The same model, still without a support, with other networks, which encode supports and segment slices."""
        result = copy(self)
        result.networks = [network.to(self.device).eval() for network in networks]
        result.labels, result.supports, result.shown_values = (), [], frozenset()
        return result

    def show(
        self,
        examples: Sequence[tuple[Scan, Path]],
        labels: Sequence[int],
        parts: int | None = None,
        match: str = "extent",
        sectors: int = 0,
    ) -> None:
        """Encodes the support from labelled scans.

        Args:
            examples: Scans with their masks; every one must show every label.
            labels: Values in the masks; each is a class.
            parts: Number of parts into which volumes are divided; see `shown_slices`.
            match: How parts of a support correspond to those of a scan; see `shown_slices`.
            sectors: Number of sectors of the `surroundings` that compete with each label; 0, the paper's: a threshold
                alone decides.

        Raises:
            ValueError: for a mask that is not in the space of its scan, has several channels or values that are not
                whole, is empty, or lacks a label; for a scan with another number of channels; for labels that are not
                positive or not different; for a negative number of sectors; and as `shown_slices`.
        """
        supports, shown = self._encode(examples, labels, parts, match, sectors)
        self.supports, self.labels, self.shown_values = supports, tuple(labels), frozenset({0, *shown})

    def encode_each(self, examples: Sequence[tuple[Scan, Path, int]], parts: int | None = None) -> list[list[Any]]:
        """Encodes classes that are segmented each on its own (1-way, as in the paper), for `segment_each`.

        Args:
            examples: For each class a scan, its mask and the class's value there; a class may be given again with
                another scan.
            parts: Number of parts into which volumes are divided.

        Returns:
            Encoded supports by fold and part, as many classes as `examples`.

        Raises:
            ValueError: as `show`.
        """
        alone = [self._encode([(scan, mask)], [label], parts, "extent", 0)[0] for scan, mask, label in examples]
        return [[_together(of_part) for of_part in zip(*fold, strict=True)] for fold in zip(*alone, strict=True)]

    def segment_each(self, scan: Scan, supports: Sequence[Sequence[Any]]) -> tuple[NDArray[np.bool_], dict]:
        """Segments a scan once for each class; the scan is encoded once for all of them.

        Args:
            scan: The scan.
            supports: Result of `encode_each`.

        Returns:
            Masks (R, D, H, W) on the scan's grid, one for each of the R examples, which may overlap; and the scan's
            properties, with which nnU-Net's reader writes them.

        Raises:
            ValueError: as `segment`.
        """
        data, _, properties = self._preprocess(scan, *read_scan(self.reader, scan.files))
        classes = len(supports[0][0][0])
        logits = _mean([self._logits(*fold, data, classes) for fold in zip(self.networks, supports, strict=True)])
        # An own threshold for each class, where `segment` decides between classes.
        alone = (self._segmentation(logits[[0, 1 + index]], 1, properties) > 0 for index in range(classes))
        return np.stack(list(alone)), properties

    def _encode(
        self,
        examples: Sequence[tuple[Scan, Path]],
        labels: Sequence[int],
        parts: int | None,
        match: str,
        sectors: int,
    ) -> tuple[list[list[Any]], set[int]]:
        """Encoded supports by fold and part, and the values in the masks; see `show`."""
        if len(set(labels)) < len(labels) or not all(label > 0 for label in labels):
            raise ValueError(f"labels {list(labels)} must be positive and different")
        if sectors < 0:
            raise ValueError(f"`sectors`={sectors} must be at least 0")
        slices, masks, shown = [], [], set[int]()
        for scan, mask in examples:
            present, of_example = self._support_slices(
                scan, mask, labels, partial(shown_slices, parts=parts, match=match), sectors
            )
            shown.update(present)
            for of_slice in of_example:
                slices.append(of_slice[0])
                masks.append(of_slice[1])
        # (parts, shots * labels, ..): parts are the fastest axis of the gathered slices.
        shots = len(examples) * len(labels)
        images, of_images = (
            torch.from_numpy(np.stack(arrays)).unflatten(0, (shots, -1)).transpose(0, 1).to(self.device)
            for arrays in (slices, masks)
        )
        with torch.inference_mode(), self._autocast():
            supports = [
                [network.encode_support(image, mask) for image, mask in zip(images, of_images, strict=True)]
                for network in self.networks
            ]
        return supports, shown

    def segment(self, scan: Scan, output: Path) -> None:
        """Segments a scan and writes the labels in its geometry.

        Raises:
            RuntimeError: before `show`.
            ValueError: for a scan with another number of channels, NaN or a damaged file.
        """
        if not self.supports:
            raise RuntimeError("nothing to look for yet: call show(examples, labels) first")
        data, _, properties = self._preprocess(scan, *read_scan(self.reader, scan.files))
        logits = _mean([self._logits(*fold, data) for fold in zip(self.networks, self.supports, strict=True)])
        segmentation = self._segmentation(logits, len(self.labels), properties)
        values = np.array([0, *self.labels], np.uint8 if max(self.labels) < 255 else np.uint16)
        self.reader.write_seg(values[segmentation], str(output), properties)

    def _segmentation(self, logits: Tensor, classes: int, properties: dict) -> NDArray[np.integer]:
        """Logits (1 + R, D, H, W) -> classes 1, .. R on the scan's grid, 0 for background."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.plans,
            self.configuration,
            LabelManager({"background": 0} | {f"class {i}": i for i in range(1, 1 + classes)}, None),
            properties,
            num_threads_torch=torch.get_num_threads(),  # nnU-Net's default is for machines with more cores
        )

    def _autocast(self) -> torch.autocast | nullcontext:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _preprocess(
        self, scan: Scan, image: np.ndarray, properties: dict, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Image (M, D, H, W), mask (1, D, H, W) and properties, preprocessed for the network."""
        if image.shape[0] != self.channels:
            raise ValueError(f"{scan.case} has {image.shape[0]} channel(s), the model has {self.channels}")
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        return preprocessor.run_case_npy(image, mask, properties, self.plans, self.configuration, self.dataset)

    def _support_slices(
        self,
        scan: Scan,
        mask_file: Path,
        labels: Sequence[int],
        choose: Callable[[np.ndarray], list[int]],
        sectors: int,
    ) -> tuple[list[int], list[tuple[np.ndarray, np.ndarray]]]:
        """Values in the mask, and image (M, h, w) and masks (R (1 + S), h, w) for each label and part.

        The masks show one label and its S sectors only: first the labels, then the sectors of each.
        """
        image, properties = read_scan(self.reader, scan.files)
        mask = align(read_label_map(self.reader, mask_file), scan.files[0], properties, image.shape[1:])
        if mask.note:
            print(f"Note: {mask.note}; nothing was resampled.", file=sys.stderr)
        present = [value for value in mask.present if value != 0]
        if not present:
            raise ValueError(f"the mask {mask_file} is empty: it shows nothing to look for")
        missing = [label for label in labels if label not in present]
        if missing:
            raise ValueError(f"the mask {mask_file} has no label {missing[0]}; it has {', '.join(map(str, present))}")
        numbered = np.zeros((1, *mask.values.shape), np.int16)
        for index, label in enumerate(labels):
            numbered[0][mask.values == label] = index + 1
        data, resampled, _ = self._preprocess(scan, image, properties, numbered)
        size = self.configuration.patch_size[-2:]
        result = []
        for index, label in enumerate(labels):
            foreground = resampled[0] == index + 1
            if not foreground.any():
                raise ValueError(f"label {label} of the mask {mask_file} is too small for the model's spacing")
            for position in choose(foreground):
                # Slices without the label are cut at its position in other slices.
                inside = foreground[position] if foreground[position].any() else foreground.any(0)
                centre = np.argwhere(inside).mean(0)
                start = window_start(centre, data.shape[2:], size)
                masks = np.zeros((len(labels) * (1 + sectors), *size), np.float32)
                masks[index] = window(foreground[[position]], start, size)[0]
                other = (resampled[0, position] > 0) & ~foreground[position]
                first = len(labels) + index * sectors
                around = surroundings(foreground[position], other, sectors)
                masks[first : first + sectors] = window(around, start, size)
                result.append((window(image_slice((data,), position), start, size), masks))
        return present, result

    @torch.inference_mode()
    def _logits(self, network: Any, supports: Sequence[Any], data: np.ndarray, classes: int | None = None) -> Tensor:
        """(M, D, H, W) -> (1 + R, D, H, W), background first, in nnU-Net's tiles of each slice.

        The background's logit is 0, or the largest logit of the labels' surroundings if that is higher: they follow
        the R classes in the supports.
        """
        classes = len(self.labels) if classes is None else classes
        tile = tuple(self.configuration.patch_size[-2:])
        padded, inside = pad_nd_image(torch.from_numpy(data), tile, "constant", {"value": 0}, True, None)
        slices = padded.transpose(0, 1)  # (D, M, H, W)
        weights = compute_gaussian(tile, 1 / 8, 10, torch.float32, torch.device("cpu"))
        logits = torch.zeros(len(slices), 1 + classes, *slices.shape[-2:])
        total = torch.zeros(slices.shape[-2:])
        lengths = [len(part) for part in query_parts(len(slices), len(supports))]
        part_of_slice = torch.repeat_interleave(torch.tensor(lengths)).to(self.device)
        of_parts = type(supports[0])(*(torch.stack(t) for t in zip(*supports, strict=True)))
        chunks = [slice(i, i + network.slices_per_chunk) for i in range(0, len(slices), network.slices_per_chunk)]
        for row, column in product(*compute_steps_for_sliding_window(slices.shape[-2:], tile, _TILE_STEP)):
            place = (..., slice(row, row + tile[0]), slice(column, column + tile[1]))
            total[place] += weights
            for chosen in chunks:
                support = type(of_parts)(*(t[part_of_slice[chosen]] for t in of_parts))
                with self._autocast():
                    found = network.segment(slices[chosen][place].to(self.device), support)
                of_labels, around = logit(found.float()).cpu().tensor_split([classes], 1)
                background = F.pad(around, (0, 0, 0, 0, 1, 0)).amax(1, keepdim=True)  # 0, or that of a sector
                logits[chosen][place] += weights * torch.cat((background, of_labels), 1)
        within = (slice(None), *inside[1:])
        return (logits / total).transpose(0, 1)[within]


def _mean(of_folds: Sequence[Tensor]) -> Tensor:
    return sum(of_folds[1:], of_folds[0]) / len(of_folds)


def _together(supports: Sequence[Any]) -> Any:
    """Supports of several classes as one."""
    return type(supports[0])(*(torch.cat(tensors) for tensors in zip(*supports, strict=True)))
