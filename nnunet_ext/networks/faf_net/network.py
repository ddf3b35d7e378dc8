"""FAF-Net: frequency-aware adaptive filtering network for few-shot segmentation, on 2D images and slices of volumes.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation), in the tradition of ADNet.

Labelled support slices give a prototype for each class. A query slice is segmented by its similarity to the prototype,
after cross attention filtered in the frequency domain has adapted the prototype to the query. The authors' code
supports one class, one support slice, ResNet-101 and 257 x 257 images. This implementation stores prototypes as buffers
of the network, so that it predicts without a support image, and supports any number of classes, several modalities,
volumes, any image size and filter grid, and other encoders, including the plan's. It drops 18.06 M of the authors'
parameters, on which no output depends.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.dimension import spatial_dims
from nnunet_ext.networks.checks import check_widths
from nnunet_ext.networks.chunks import in_chunks
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.faf_net.adapting import TIED
from nnunet_ext.networks.faf_net.encoder import FAFEncoder
from nnunet_ext.networks.faf_net.head import Episode, FAFHead, Support, shots, summarise
from nnunet_ext.networks.faf_net.pretrainable import Pretrainable
from nnunet_ext.networks.topology import PerStage, Topology

MAX_GRID = 65
"""Default limit of the filter grid per axis: the authors' grid, for 257 pixels."""


class FAFNet(nn.Module):
    """FAF-Net with nnU-Net's constructor vocabulary.

    The network works on slices; for a volume, these run along the first spatial axis. Its weights are not tied to an
    image size: for another feature grid the filters are resized (see `AFF`).

    It predicts the classes of its support, so call `set_support` first, or load weights that were saved after it. The
    support is part of the state dict, as prototypes under ``decoder.seg_layers``, which nnU-Net's
    ``-pretrained_weights`` skips.

    Args:
        input_channels: M, the number of modalities. A ResNet gets a single modality repeated, three unchanged, and any
            other number through a learned 1x1 convolution that is initialised to the mean.
        num_classes: K, the number of nnU-Net's outputs, including background unless `regions`.
        patch_size: P in voxels, divisible by the product of the strides; the filter grid follows from it.
        n_stages: Stages of the plan's encoder.
        features_per_stage: Channels of the plan's encoder.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d`` (volumes, slice by slice).
        kernel_sizes: Odd kernel sizes of the plan's encoder; the last two axes are used.
        strides: Strides of the plan's encoder; the last two axes are used.
        encoder: ``"resnet101"`` (the paper's), ``"resnet50"``, ``"resnet18"``; ``"plan"``: the plan's stages up to an
            in-plane stride of 4, with `two_conv` after max-pooling; or ``"timm:NAME"``: a network of timm by its name
            there, see `TimmBackbone`.
        encoder_frozen: Whether the encoder is never trained, except for the 1x1 convolutions to F and tau; see
            `FAFEncoder`.
        weights: For a ResNet: ``"imagenet"`` or ``"coco"`` (DeepLabV3's backbone); for timm's networks: ``"timm"``; a
            file's path; or None. See `load_encoder_weights`.
        regions: Whether no output is background; kept in a buffer, which `set_support` can change.
        threshold_from: ``"query"`` (the authors' code) or ``"support"`` (their figure); see `FAFHead`.
        filter_grid: Grid (h, w) of AFF's filters; None: that of the patch's features, at most 65 per axis, for timm's
            encoders half of it, because all of their maps but the finest have no more positions.
        feature_channels: C, channels of the features; None: 512 (the paper's), but at most the width of the plan's
            encoder or timm's.
        icm_heads: m, heads of ICM.
        slices_per_chunk: Slices that are encoded at a time. With gradients, several chunks are recomputed in the
            backward pass, so that memory holds only one chunk's activations (ResNet-101: 0.25 GB per slice of
            128 x 128).
        deep_supervision: Whether to return the single output in a list.

    Shape:
        (B, M, H, W) or (B, M, D, H, W) -> logits (B, K, H, W) or (B, K, D, H, W): log(P / (1 - P)) of every class, 0
        for background; with deep supervision, a list with this one entry.

    Raises:
        ValueError: for sizes that do not fit together, unknown encoders, weights or thresholds.
        RuntimeError: if pretrained weights cannot be downloaded.
    """

    tied_to_patch = TIED
    plan_arguments = ("encoder", "encoder_frozen")

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: int | Sequence[int],
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: PerStage,
        strides: PerStage,
        encoder: str = "resnet101",
        weights: str | None = None,
        regions: bool = False,
        threshold_from: str = "query",
        filter_grid: int | Sequence[int] | None = None,
        feature_channels: int | None = None,
        icm_heads: int = 4,
        slices_per_chunk: int = 8,
        deep_supervision: bool = False,
        encoder_frozen: bool = False,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        if num_classes == 1 and not regions:
            raise ValueError("`num_classes`=1 is background alone; give `regions=True` if it is a region")
        for name, value in (
            ("feature_channels", feature_channels),
            ("icm_heads", icm_heads),
            ("slices_per_chunk", slices_per_chunk),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}`={value} must be at least 1")
        topology = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        self.spatial_dims = spatial_dims(conv_op)
        self.input_channels, self.num_classes = input_channels, num_classes
        self.patch_size = topology.patch_size
        self.slices_per_chunk = slices_per_chunk
        self.encoder = FAFEncoder(input_channels, encoder, topology, feature_channels, encoder_frozen)
        grid = self.encoder.grid(self.patch_size[-2:])
        if filter_grid is None:
            step = self.encoder.backbone.filter_step if isinstance(self.encoder.backbone, Pretrainable) else 1
            filter_grid = tuple(min(-(-size // step), MAX_GRID) for size in grid)
        elif isinstance(filter_grid, int):
            filter_grid = (filter_grid,) * 2
        if len(filter_grid) != 2 or min(filter_grid) < 1:
            raise ValueError(f"`filter_grid`={tuple(filter_grid)} must be two positive sizes, in-plane")
        self.decoder = FAFHead(
            num_classes,
            self.encoder.channels,
            icm_heads,
            filter_grid,
            regions=regions,
            threshold_from=threshold_from,
            slices_per_chunk=slices_per_chunk,
            deep_supervision=deep_supervision,
        )
        if weights is not None:
            self.load_encoder_weights(weights)

    @with_empty_batches
    @at_any_precision
    def forward(
        self,
        x: Tensor,
        support_images: Tensor | None = None,
        support_masks: Tensor | None = None,
        query_masks: Tensor | None = None,
        described: bool = False,
    ) -> Tensor | list[Tensor] | Episode:
        """Logits from the stored support or, if support images are given, `forward_episode` with x as query images.

        With `described`, the latter is `forward_described`, with the described slices in place of the images. Both are
        here because DistributedDataParallel and torch.compile handle only calls of the network itself.

        Raises:
            ValueError: for inputs with other axes or channels, or inputs that are too small.
            RuntimeError: if no support has been set.
        """
        if support_images is not None:
            if support_masks is None:
                raise ValueError("`support_images` need `support_masks`")
            if described:
                if query_masks is None:
                    raise ValueError("described episodes need `query_masks`")
                return self.forward_described(support_images, support_masks, x, query_masks)
            return self.forward_episode(support_images, support_masks, x, query_masks)
        self._check_input(x)
        bank, slices = self.decoder.seg_layers, x
        if self.spatial_dims == 3:
            slices = x.movedim(2, 1).flatten(0, 1)
        probabilities = self.segment(slices, bank.support())
        logits = bank.outputs(probabilities)
        if self.spatial_dims == 3:
            logits = logits.unflatten(0, (x.shape[0], x.shape[2])).movedim(2, 1).contiguous()
        return [logits] if self.decoder.deep_supervision else logits

    @at_any_precision
    def segment(self, images: Tensor, support: Support) -> Tensor:
        """Probabilities of every class of a support, regardless of the classes that the network was trained on.

        Args:
            images: Slices.
            support: Result of `encode_support`, for all slices, or stacked, one for each slice.

        Shape:
            (N, M, H, W), prototypes (R, C) or (N, R, C) -> (N, R, H, W)
        """
        self._check_slices(images)

        if support.valid.ndim == 1:
            support = Support(*(t.expand(images.shape[0], *t.shape) for t in support))

        def segment(chunk: Tensor, *of_chunk: Tensor) -> "tuple[Tensor, ...]":  # torch.compile of 2.5 evaluates it
            features, tau = self.encoder(chunk)
            return self.decoder.segment(features, tau, Support(*of_chunk), chunk.shape[-2:])[:1]

        return in_chunks(self, segment, self.slices_per_chunk, images, *support, norms=self.encoder)[0]

    @at_any_precision
    def encode_support(self, images: Tensor, masks: Tensor) -> Support:
        """Prototypes of the classes, each a mean over the slices that show the class, with gradients if enabled.

        Args:
            images: Slices, of any size.
            masks: Foreground (above 0) of every class; no channel for background.

        Shape:
            (N, M, H, W), (N, R, H, W) -> prototypes (R, C), thresholds (R,), valid (R,)

        Raises:
            ValueError: if images and masks do not match each other or the network.
        """
        self._check_slices(images)
        _check_masks(images, masks)

        def encode(chunk: Tensor, its_masks: Tensor) -> tuple[Tensor, ...]:
            of_slices = shots(*(t[None] for t in (*self.encoder(chunk), its_masks)))
            return tuple(t[0] for t in of_slices)

        prototypes, thresholds, valid = in_chunks(
            self, encode, self.slices_per_chunk, images, masks, norms=self.encoder
        )
        return summarise(prototypes, thresholds, valid)

    @torch.no_grad()
    def set_support(self, images: Tensor, masks: Tensor, regions: bool | None = None) -> None:
        """Computes the prototypes for prediction, in eval mode, and stores them in the network's buffers.

        A class that no slice shows will not be predicted anywhere.

        Args:
            images: Slices of any size, also for networks on volumes.
            masks: Foreground of every class in the order of the outputs; no channel for background.
            regions: Whether no output is background (nnU-Net's region-based training); None: unchanged.

        Shape:
            (N, M, H, W), (N, R, H, W); R = K with regions, else K - 1

        Raises:
            ValueError: if images and masks do not match each other or the network, or if no mask has foreground.
        """
        bank = self.decoder.seg_layers
        background = bool(bank.has_background) if regions is None else not regions
        expected = self.num_classes - background
        if masks.ndim != 4 or masks.shape[1] != expected:
            raise ValueError(
                f"`masks` must be (N, {expected}, H, W), one channel for every class {'but background ' * background}"
                f"of the {self.num_classes} outputs, got {tuple(masks.shape)}"
            )
        training = self.training
        self.eval()
        try:
            support = self.encode_support(images, masks)
        finally:
            self.train(training)
        if not support.valid.any():
            raise ValueError("no mask has foreground: no prototype can be computed")
        bank.has_background.fill_(background)
        bank.store(support)

    @property
    def has_support(self) -> bool:
        """Whether a prototype is stored for prediction."""
        return bool(self.decoder.seg_layers.prototype_valid.any())

    def forward_episode(
        self,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
        query_masks: Tensor | None = None,
    ) -> Episode:
        """Segments the query slices of E episodes with their own support slices, and computes the training losses.

        The paper's training has one class, one support slice and one query slice per episode (S = Q = R = 1) and
        batches of episodes; a bank of labelled slices for a batch of query slices is a single episode (E = 1).
        Gradients flow through everything, including the encoding of the support, except the prediction from which the
        alignment starts, which is a hard mask. Batch norms of pretrained encoders stay frozen; those trained from
        scratch see the slices of support and query in one batch, as far as they fit into a chunk.

        Alignment and prototype losses are averaged over query slices and classes (0 where nothing is predicted) and
        over the support slices that show the class. Classes that no support slice of an episode shows are left out of
        all losses. The stored support is neither used nor changed.

        Args:
            support_images: Slices.
            support_masks: Foreground of every class, `UNLABELLED` where it is unknown; no channel for background.
            query_images: Slices, of any size.
            query_masks: Foreground of every class, for the query's loss; None: this loss is 0.

        Shape:
            (E, S, M, H, W), (E, S, R, H, W), (E, Q, M, H', W'), (E, Q, R, H', W'); see `Episode`

        Raises:
            ValueError: if shapes do not match each other or the network.
        """
        for images, masks in ((support_images, support_masks), (query_images, query_masks)):
            if images.ndim != 5:
                raise ValueError(f"an episode's images must be (E, slices, M, H, W), got {tuple(images.shape)}")
            self._check_slices(images[0])
            if masks is not None:
                _check_masks(images, masks)
        e, s = support_images.shape[:2]
        if query_images.shape[0] != e:
            raise ValueError(f"`query_images` have {query_images.shape[0]} episodes, but `support_images` have {e}")
        if query_masks is not None and query_masks.shape[2] != support_masks.shape[2]:
            raise ValueError(
                f"`query_masks` have {query_masks.shape[2]} classes, but `support_masks` {support_masks.shape[2]}"
            )
        groups = [support_images.flatten(0, 1), query_images.flatten(0, 1)]
        if support_images.shape[-2:] == query_images.shape[-2:]:
            parts = [(t[: e * s], t[e * s :]) for t in self._encode(torch.cat(groups))]
        else:
            parts = list(zip(*map(self._encode, groups), strict=True))
        encoded = [[t.unflatten(0, (e, -1)) for t in pair] for pair in zip(*parts, strict=True)]
        return self._episode(encoded, support_masks, query_masks, query_images.shape[-2:])

    def forward_described(
        self, support_described: Tensor, support_masks: Tensor, query_described: Tensor, query_masks: Tensor
    ) -> Episode:
        """`forward_episode` for slices that a frozen encoder has described before; see `FAFEncoder.describe`.

        Shape:
            (E, S, width, h, w), (E, S, R, H, W), (E, Q, width, h', w'), (E, Q, R, H', W')
        """
        encoded = []
        for described in (support_described, query_described):
            parts = in_chunks(self, self.encoder.project, self.slices_per_chunk, described.flatten(0, 1))
            encoded.append([t.unflatten(0, described.shape[:2]) for t in parts])
        return self._episode(encoded, support_masks, query_masks, query_masks.shape[-2:])

    def _episode(
        self,
        encoded: Sequence[Sequence[Tensor]],
        support_masks: Tensor,
        query_masks: Tensor | None,
        query_size: Sequence[int],
    ) -> Episode:
        """The head on features and threshold maps of the support and of the query."""
        (support_features, support_tau), (query_features, query_tau) = encoded
        return self.decoder.episode(
            support_features=support_features,
            support_tau=support_tau,
            support_masks=support_masks,
            query_features=query_features,
            query_tau=query_tau,
            query_size=query_size,
            query_masks=query_masks,
        )

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features and threshold maps of slices, in chunks; a frozen encoder's work is not done again for gradients."""
        encoder, size = self.encoder, self.slices_per_chunk
        if not encoder.frozen:
            return in_chunks(self, encoder, size, images, norms=encoder)
        with torch.no_grad():
            (described,) = in_chunks(self, lambda chunk: (encoder.describe(chunk),), size, images)
        return in_chunks(self, encoder.project, size, described)

    def segment_features(
        self, support_features: Tensor, support_mask: Tensor, query_features: Tensor, query_threshold: Tensor
    ) -> Tensor:
        """The network after its encoder, for one class; see `FAFHead.segment_features`."""
        return self.decoder.segment_features(support_features, support_mask, query_features, query_threshold)

    def load_encoder_weights(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Loads weights into a pretrained encoder and freezes its batch norms' statistics.

        This is for training: loading the weights of a whole network later replaces them, and the norms stay frozen.

        Args:
            weights: For torchvision's ResNets ``"imagenet"`` or ``"coco"``, for timm's networks ``"timm"``, their
                default weights; for both a state dict, or the path of a file with one (of torch.save or safetensors),
                from which no code is executed.

        Raises:
            ValueError: for unknown weights, weights of another network, or the plan's encoder.
            FileNotFoundError: if there is no such file.
            RuntimeError: if the weights cannot be downloaded.
        """
        self.encoder.load_weights(weights)

    def freeze_encoder_norms(self) -> None:
        """Freezes the batch norms' statistics of a pretrained encoder, as `load_encoder_weights` does."""
        if isinstance(self.encoder.backbone, Pretrainable):
            self.encoder.backbone.freeze_norms()

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 2 + self.spatial_dims:
            axes = "B, M, H, W" if self.spatial_dims == 2 else "B, M, D, H, W"
            raise ValueError(f"this network was built for inputs of shape ({axes}), got {tuple(x.shape)}")
        self._check_slices(x if self.spatial_dims == 2 else x[:, :, 0])

    def _check_slices(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.input_channels:
            raise ValueError(f"slices must be (N, {self.input_channels}, H, W), got {tuple(images.shape)}")
        self.encoder.grid(images.shape[-2:])


def _check_masks(images: Tensor, masks: Tensor) -> None:
    """Raises ValueError unless the masks have the same leading axes and size as the images."""
    lead = images.ndim - 3
    if masks.ndim != images.ndim or masks.shape[:lead] != images.shape[:lead] or masks.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not match images of shape {tuple(images.shape)}: all axes must be "
            "equal except the channels, of which masks have one per class"
        )
