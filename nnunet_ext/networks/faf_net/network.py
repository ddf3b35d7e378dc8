"""FAF-Net: frequency-aware adaptive filtering network for few-shot segmentation, on 2D images and slices of volumes.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation), in the line of ADNet.

Labelled support slices give a prototype per class; a query slice is segmented by likeness to it, after cross attention
filtered in the frequency domain has adapted it to the query. Beyond the authors' code, which takes one class, one
support slice, ResNet-101 and 257 x 257 images: prototypes as buffers of the network, so that it predicts without a
support image; any number of classes, several modalities, volumes, any image size and filter grid, other encoders, the
plan's among them. 18.06 M parameters of theirs that no output depends on are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.dimension import spatial_dims
from nnunet_ext.networks.checks import check_widths
from nnunet_ext.networks.chunks import in_chunks
from nnunet_ext.networks.faf_net.dilated_resnet import RESNETS, DilatedResNet
from nnunet_ext.networks.faf_net.encoder import FAFEncoder
from nnunet_ext.networks.faf_net.head import Episode, FAFHead, Support, shots, summarise
from nnunet_ext.networks.topology import PerStage, Topology

MAX_GRID = 65
"""Of the filters by default, per axis: the authors', of 257 pixels."""


class FAFNet(nn.Module):
    """FAF-Net with nnU-Net's constructor vocabulary.

    Works on slices: of a volume those along the first spatial axis. Weights are tied to no image size: the filters
    of another feature grid are resized (see `AFF`).

    It predicts what its support shows: `set_support` first, or load weights that were saved after it. The support is
    part of the state dict, as prototypes under ``decoder.seg_layers``, which nnU-Net's ``-pretrained_weights`` skips.

    Args:
        input_channels: M, the number of modalities. A ResNet gets one repeated, three as they are, and another number
            through a learned 1x1 convolution that starts as the mean.
        num_classes: K, the number of nnU-Net's outputs: background included, unless `regions`.
        patch_size: P in voxels, divisible by the product of the strides; the filter grid follows from it.
        n_stages: Stages of the plan's encoder.
        features_per_stage: Channels of the plan's encoder.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d`` (volumes, slice by slice).
        kernel_sizes: Odd kernel sizes of the plan's encoder; the last two axes are used.
        strides: Strides of the plan's encoder; the last two axes are used.
        encoder: ``"resnet101"`` (the paper's), ``"resnet50"``, ``"resnet18"``, or ``"plan"``: the plan's stages up to
            an in-plane stride of 4, with `two_conv` after max-pooling.
        weights: For a ResNet: ``"imagenet"``, ``"coco"`` (DeepLabV3's backbone), or None; see `load_encoder_weights`.
        regions: Whether no output is background; kept in a buffer, which `set_support` can change.
        threshold_from: ``"query"`` (the authors' code) or ``"support"`` (their figure); see `FAFHead`.
        filter_grid: Of AFF's filters, (h, w); None: the features' of the patch, at most 65 per axis.
        feature_channels: C of the features; None: 512 (the paper's), with the plan's encoder at most its own width.
        icm_heads: m, heads of ICM.
        slices_per_chunk: Slices that are encoded at a time; with gradients several chunks are recomputed in the
            backward pass, so that memory holds one chunk's activations (ResNet-101: 0.25 GB a slice of 128 x 128).
        deep_supervision: Whether the one output comes in a list; there are no others.

    Shape:
        (B, M, H, W) or (B, M, D, H, W) -> (B, K, same space) logits: log(P / (1 - P)) of every class, 0 for
        background; with deep supervision a list of one.

    Raises:
        ValueError: for sizes that do not fit together, unknown encoders, weights or thresholds.
        RuntimeError: if pretrained weights cannot be downloaded.
    """

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
        topology = Topology.create(conv_op, patch_size, n_stages, features_per_stage, kernel_sizes, strides)
        self.spatial_dims = spatial_dims(conv_op)
        self.input_channels, self.num_classes = input_channels, num_classes
        self.patch_size = topology.patch_size
        self.slices_per_chunk = slices_per_chunk
        self.encoder = FAFEncoder(input_channels, encoder, topology, feature_channels)
        grid = self.encoder.grid(self.patch_size[-2:])
        if filter_grid is None:
            filter_grid = tuple(min(size, MAX_GRID) for size in grid)
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

    def forward(
        self,
        x: Tensor,
        support_images: Tensor | None = None,
        support_masks: Tensor | None = None,
        query_masks: Tensor | None = None,
    ) -> Tensor | list[Tensor] | Episode:
        """Logits by the stored support; given support images, `forward_episode` with x as the query images.

        The latter is for DistributedDataParallel and torch.compile, which see calls of the network only.

        Raises:
            ValueError: for inputs of other axes or channels, or too small ones.
            RuntimeError: before any support is set.
        """
        if support_images is not None:
            if support_masks is None:
                raise ValueError("`support_images` need `support_masks`")
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

    def segment(self, images: Tensor, support: Support) -> Tensor:
        """Probabilities of every class of a support, whatever classes the network was trained on.

        Args:
            images: Slices.
            support: From `encode_support`, for all of them, or stacked, one for each.

        Shape:
            (N, M, H, W), prototypes (R, C) or (N, R, C) -> (N, R, H, W)
        """
        self._check_slices(images)

        if support.valid.ndim == 1:
            support = Support(*(t.expand(images.shape[0], *t.shape) for t in support))

        def segment(chunk: Tensor, *of_chunk: Tensor) -> tuple[Tensor, ...]:
            features, tau = self.encoder(chunk)
            return self.decoder.segment(features, tau, Support(*of_chunk), chunk.shape[-2:])[:1]

        return in_chunks(segment, self.slices_per_chunk, images, *support, norms=self.encoder)[0]

    def encode_support(self, images: Tensor, masks: Tensor) -> Support:
        """Prototypes of the classes, each a mean over the slices that show it, with gradients if they are enabled.

        Args:
            images: Slices, of any size.
            masks: Foreground (above 0) of every class; no channel for background.

        Shape:
            (N, M, H, W), (N, R, H, W) -> prototypes (R, C), thresholds (R,), valid (R,)

        Raises:
            ValueError: if images and masks do not fit together or to the network.
        """
        self._check_slices(images)
        _check_masks(images, masks)

        def encode(chunk: Tensor, its_masks: Tensor) -> tuple[Tensor, ...]:
            of_slices = shots(*(t[None] for t in (*self.encoder(chunk), its_masks)))
            return tuple(t[0] for t in of_slices)

        prototypes, thresholds, valid = in_chunks(encode, self.slices_per_chunk, images, masks, norms=self.encoder)
        return summarise(prototypes, thresholds, valid)

    @torch.no_grad()
    def set_support(self, images: Tensor, masks: Tensor, regions: bool | None = None) -> None:
        """Computes the prototypes that the network predicts with, in eval mode, and keeps them in its buffers.

        A class that no slice shows will be predicted nowhere.

        Args:
            images: Slices, of any size; for volumes too.
            masks: Foreground of every class in the order of the outputs; no channel for background.
            regions: Whether no output is background (nnU-Net's region-based training); None: as it was.

        Shape:
            (N, M, H, W), (N, R, H, W); R = K with regions, else K - 1

        Raises:
            ValueError: if images and masks do not fit together or to the network, or no mask has foreground.
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
            raise ValueError("no mask has foreground: there is nothing to take a prototype from")
        bank.has_background.fill_(background)
        bank.store(support)

    @property
    def has_support(self) -> bool:
        """Whether there is a prototype to predict with."""
        return bool(self.decoder.seg_layers.prototype_valid.any())

    def forward_episode(
        self,
        support_images: Tensor,
        support_masks: Tensor,
        query_images: Tensor,
        query_masks: Tensor | None = None,
    ) -> Episode:
        """Segments E episodes' query slices by their own support slices, with the losses of training.

        The paper's training has one class, support and query slice in an episode (S = Q = R = 1) and batches of
        episodes; a bank of labelled slices for a batch of query slices is one episode (E = 1). Everything carries
        gradients, the encoding of the support included, but the prediction that the alignment starts from, which is
        a hard mask. Batch norms of pretrained encoders stay frozen; those trained from scratch see the support's
        slices and the query's in one batch, as far as a chunk holds them.

        Alignment and prototype losses are means over query slices and classes, with 0 where nothing is predicted,
        and over the support slices that show the class. Classes that no support slice of an episode shows count in
        no loss. The stored support is neither used nor changed.

        Args:
            support_images: Slices.
            support_masks: Foreground of every class, `UNLABELLED` where that is not known; no channel for background.
            query_images: Slices, of any size.
            query_masks: Foreground of every class, for the query's loss; None: that loss is 0.

        Shape:
            (E, S, M, H, W), (E, S, R, H, W), (E, Q, M, H', W'), (E, Q, R, H', W'); see `Episode`

        Raises:
            ValueError: if shapes do not fit together or to the network.
        """
        for images, masks in ((support_images, support_masks), (query_images, query_masks)):
            if images.ndim != 5:
                raise ValueError(f"an episode's images must be (E, slices, M, H, W), got {tuple(images.shape)}")
            self._check_slices(images[0])
            if masks is not None:
                _check_masks(images, masks)
        e, s = support_images.shape[:2]
        if query_images.shape[0] != e:
            raise ValueError(f"`query_images` are of {query_images.shape[0]} episodes and `support_images` of {e}")
        if query_masks is not None and query_masks.shape[2] != support_masks.shape[2]:
            raise ValueError(
                f"`query_masks` have {query_masks.shape[2]} classes and `support_masks` {support_masks.shape[2]}"
            )
        groups = [support_images.flatten(0, 1), query_images.flatten(0, 1)]
        if support_images.shape[-2:] == query_images.shape[-2:]:
            encoded = in_chunks(self.encoder, self.slices_per_chunk, torch.cat(groups), norms=self.encoder)
            parts = [(t[: e * s], t[e * s :]) for t in encoded]
        else:
            each = (in_chunks(self.encoder, self.slices_per_chunk, group, norms=self.encoder) for group in groups)
            parts = list(zip(*each, strict=True))
        (support_features, query_features), (support_tau, query_tau) = (
            [t.unflatten(0, (e, -1)) for t in pair] for pair in parts
        )
        return self.decoder.episode(
            support_features,
            support_tau,
            support_masks,
            query_features,
            query_tau,
            query_images.shape[-2:],
            query_masks,
        )

    def segment_features(
        self, support_features: Tensor, support_mask: Tensor, query_features: Tensor, query_threshold: Tensor
    ) -> Tensor:
        """The network after its encoder, for one class; see `FAFHead.segment_features`."""
        return self.decoder.segment_features(support_features, support_mask, query_features, query_threshold)

    def load_encoder_weights(self, weights: str) -> None:
        """Loads torchvision's weights into a ResNet encoder and freezes its batch norms' statistics.

        For training: weights of a whole network, loaded later, replace them, and the norms stay frozen.

        Args:
            weights: ``"imagenet"`` or ``"coco"``.

        Raises:
            ValueError: for unknown weights or another encoder.
            RuntimeError: if they cannot be downloaded.
        """
        backbone = self.encoder.backbone
        if not isinstance(backbone, DilatedResNet):
            raise ValueError(
                f"`weights`={weights!r} are for {', '.join(RESNETS)}; encoder 'plan' has weights=None only"
            )
        backbone.load_pretrained(weights)

    def freeze_encoder_norms(self) -> None:
        """Freezes the batch norms' statistics of a ResNet encoder, as `load_encoder_weights` does."""
        if isinstance(self.encoder.backbone, DilatedResNet):
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
    """Raises ValueError unless masks have the images' leading axes and size."""
    lead = images.ndim - 3
    if masks.ndim != images.ndim or masks.shape[:lead] != images.shape[:lead] or masks.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit images of shape {tuple(images.shape)}: the same axes but "
            "for the channels, of which masks have one a class"
        )
