"""Checks of a network's outputs and gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.check.subject import Failure, Skipped, Subject, outputs_of, require_close, without_dropout
from nnunet_ext.utils.messages import first_line, some_of

_LOWER = "return a list with the finest output first, or set `has_lower_outputs = False` on the trainer"


def check_outputs(subject: Subject, batch_size: int = 3) -> None:
    """One finite tensor of logits of the patch's size; under deep supervision several, from fine to coarse."""
    x = subject.images(batch_size)
    with torch.no_grad():
        single = subject.network().eval()(x)
        outputs = subject.network(deep_supervision=True).eval()(x)
    if not isinstance(single, Tensor):
        raise Failure(
            f"without deep supervision it returns a {type(single).__name__}",
            "return one tensor of logits, or define `network_outputs` on the trainer",
        )
    if subject.lower_outputs != isinstance(outputs, (list, tuple)):
        raise Failure(f"under deep supervision it returns a {type(outputs).__name__}", _LOWER)
    every = [single, *(outputs if isinstance(outputs, (list, tuple)) else [outputs])]
    expected = (batch_size, subject.num_classes, *subject.patch_size)
    for found in every[:2]:
        if tuple(found.shape) != expected:
            raise Failure(
                f"the logits have the shape {tuple(found.shape)} instead of {expected}",
                "return logits of the input's size, one channel per class",
            )
    if not all(y.isfinite().all() for y in every):
        raise Failure("the logits are not finite", "look for a division by 0 or the variance of one value")
    _check_order(subject, every[1:])


def _check_order(subject: Subject, outputs: list[Tensor]) -> None:
    sizes = [tuple(y.shape[2:]) for y in outputs]
    voxels = [y[0, 0].numel() for y in outputs]
    if voxels != sorted(voxels, reverse=True):
        raise Failure(f"the outputs have the sizes {sizes}", "return the finest output first")
    if subject.lower_outputs and subject.scales is not None:
        expected = [
            tuple(round(size * part) for size, part in zip(subject.patch_size, scale, strict=True))
            for scale in subject.scales
        ]
        if sizes != expected:
            raise Failure(
                f"the outputs have the sizes {sizes}, but the targets {expected}",
                "return one output for each size in `_get_deep_supervision_scales`",
            )


def check_gradients(subject: Subject, batch_size: int = 3) -> None:
    """Every parameter gets a finite gradient from the outputs, and not 0, except those of `Subject.idle`.

    A weight that starts at 0, such as that of a residual branch's last norm, hides the weights before it in the first
    step only: they are judged with another value of it.
    """
    network = without_dropout(subject.network(deep_supervision=True)).train()  # it may drop all that a weight sees
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    images = subject.images(batch_size)
    _require_gradients(network, images, learning)
    idle = _idle(learning, subject)
    if idle and (hiding := [p for name, p in learning.items() if not p.any() and not name.endswith(subject.idle)]):
        with torch.no_grad():
            for parameter in hiding:
                parameter.normal_(std=0.1)
        network.zero_grad()
        _require_gradients(network, images, learning)
        still = _idle(learning, subject)
        idle = [name for name in idle if name in still]
    if idle:
        raise Failure(
            f"gradients of {some_of(idle, 3)} are 0", "check that they reach the output, past ReLUs for instance"
        )


def _require_gradients(network: nn.Module, images: Tensor, learning: dict[str, nn.Parameter]) -> None:
    """Differentiates a random sum of the outputs; raises a `Failure` unless all have a finite gradient."""
    outputs = outputs_of(network, images)
    torch.manual_seed(2)
    torch.stack([(y * torch.randn_like(y)).sum() for y in outputs]).sum().backward()
    silent = [name for name, p in learning.items() if p.grad is None]
    if silent:
        raise Failure(
            f"{some_of(silent, 3)} get no gradient",
            "use every parameter in `forward`, or set `requires_grad = False`: DDP ends with an error otherwise",
        )
    broken = [name for name, p in learning.items() if not _gradient(p).isfinite().all()]
    if broken:
        raise Failure(f"gradients of {some_of(broken, 3)} are not finite", "look for roots and logarithms of 0")


def _idle(learning: dict[str, nn.Parameter], subject: Subject) -> list[str]:
    return [name for name, p in learning.items() if not _gradient(p).any() and not name.endswith(subject.idle)]


def check_samples(subject: Subject) -> None:
    """Samples of a batch do not see each other in evaluation."""
    network = subject.network().eval()
    x = subject.images(3)
    with torch.no_grad():
        together = network(x)
        apart = torch.cat([network(sample[None]) for sample in x])
    remedy = "use no batch statistics in evaluation, and reshape without mixing the first axis"
    require_close(apart, together, 1e-4, "logits of a sample depend on the other samples", remedy)


def check_switch(subject: Subject) -> None:
    """Deep supervision is switched off and on again as nnU-Net does for prediction."""
    if not subject.lower_outputs:
        raise Skipped("no outputs at lower resolutions")
    network = subject.network(deep_supervision=True).eval()
    x = subject.images()
    with torch.no_grad():
        outputs = outputs_of(network, x)
        subject.switch(network, False)
        single = network(x)
        subject.switch(network, True)
        again = outputs_of(network, x)
    if not isinstance(single, Tensor) or len(again) != len(outputs):
        raise Failure(
            "nnU-Net's switch `network.decoder.deep_supervision` does not change what is returned",
            "read `deep_supervision` of the decoder in every call",
        )
    require_close(single, outputs[0], 1e-6, "without deep supervision the logits differ", _LOWER)


def check_prediction_weights(subject: Subject) -> None:
    """Weights that were trained with deep supervision load into the network that predicts, and give the same."""
    trained = subject.network(deep_supervision=True).eval()
    predictor = subject.network().eval()
    try:
        predictor.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise Failure(
            f"the network without deep supervision does not load weights trained with it ({first_line(error)})",
            "build the same modules with and without deep supervision",
        ) from error
    x = subject.images()
    with torch.no_grad():
        found, expected = predictor(x), outputs_of(trained, x)[0]
    require_close(found, expected, 1e-6, "loaded weights give other logits", "keep all state in parameters and buffers")


def check_precision(subject: Subject, dtype: torch.dtype, magnitude: float = 100, norm_scale: float = 1) -> None:
    """Logits and gradients stay finite under autocast at inputs of this magnitude.

    Args:
        subject: The network.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        magnitude: Standard deviation of the images.
        norm_scale: Value of every norm's weight, so that maps inside the network have this magnitude too; 1: as built.
    """
    network = subject.network(deep_supervision=True)
    if norm_scale != 1:
        scale_norms(network, norm_scale)
    short = str(dtype).removeprefix("torch.")
    remedy = f"compute sums, norms, exponentials and attention in float32: `with torch.autocast({subject.device!r}, "
    remedy += "enabled=False)`"
    with torch.autocast(subject.device, dtype=dtype):
        outputs = outputs_of(network, magnitude * subject.images())
    if not all(y.isfinite().all() for y in outputs):
        raise Failure(f"logits are not finite in {short} at images of magnitude {magnitude:g}", remedy)
    # Gradients of a training loss; a GradScaler handles losses whose gradient grows with the logits.
    torch.stack([F.cross_entropy(y.float(), y.argmin(1)) for y in outputs]).sum().backward()
    broken = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if broken:
        raise Failure(f"gradients of {some_of(broken, 3)} are not finite in {short} at magnitude {magnitude:g}", remedy)


def scale_norms(network: nn.Module, scale: float) -> None:
    """Makes norms return maps of this magnitude."""
    for name, p in network.named_parameters():
        if p.ndim == 1 and name.endswith("weight"):
            nn.init.constant_(p, scale)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
