"""Devices that torch can use on this machine."""

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(wanted: str) -> str:
    """The device with a name; `auto` is the best available one.

    Raises:
        ValueError: if torch finds no such device.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        raise ValueError(f"--device {wanted}: torch {torch.__version__} finds no such device; use auto or cpu")
    return wanted
