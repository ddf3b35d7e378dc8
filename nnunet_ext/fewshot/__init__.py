"""Few-shot segmentation: episodes, support banks, and the model that segments scans from labelled slices."""

from nnunet_ext.supervoxels import SupervoxelParameters, cached_supervoxels, default_min_size, supervoxels

__all__ = ["SupervoxelParameters", "cached_supervoxels", "default_min_size", "supervoxels"]
