"""Supervoxels of unlabelled images, from which few-shot training draws its episodes."""

from nnunet_ext.supervoxels.supervoxel_cache import cached_supervoxels
from nnunet_ext.supervoxels.supervoxels import SupervoxelParameters, default_min_size, supervoxels

__all__ = ["SupervoxelParameters", "cached_supervoxels", "default_min_size", "supervoxels"]
