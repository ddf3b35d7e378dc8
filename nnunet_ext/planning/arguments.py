"""Arguments that `nnunet_ext plan` accepts."""

from collections.abc import Sequence

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


def check_arguments(gpu_memory: float, spacing: Sequence[float] | None, configurations: Sequence[str] | None) -> None:
    """Checks the memory in GB, the spacing in mm and the names of configurations; None is a default.

    Raises:
        ValueError: for the first that is wrong.
    """
    if not gpu_memory > 0:
        raise ValueError(f"--gpu-memory {gpu_memory:g} must be positive")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"--overwrite-target-spacing {' '.join(map(str, spacing))} must be three positive numbers, mm")
    for configuration in configurations or ():
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"unknown configuration {configuration!r}; known: {', '.join(CONFIGURATIONS)}")
