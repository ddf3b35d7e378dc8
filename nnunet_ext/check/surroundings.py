"""Checks of a network in what PyTorch and nnU-Net put around it."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.check.subject import Failure, Skipped, Subject, outputs_of, require_close, rounding, without_dropout
from nnunet_ext.profiling.live_memory import LiveMemory
from nnunet_ext.profiling.memory import trace_network
from nnunet_ext.utils.messages import first_line
from nnunet_ext.utils.torch_private import forget_compilations, tree_leaves

_STATE = "keep all state in parameters and buffers, registered in the constructor"
_MEMORY_TOLERANCE = 0.01


def check_copies(subject: Subject) -> None:
    """A state dict's round trip and a deep copy give the same logits."""
    network = subject.network().eval()
    x = subject.images()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    restored = without_dropout(subject.build(False).to(subject.device)).eval()
    restored.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = network(x)
        require_close(restored(x), expected, 1e-6, "a state dict's round trip changes the logits", _STATE)
        require_close(copy.deepcopy(network)(x), expected, 1e-6, "a deep copy gives other logits", _STATE)


def check_pickle(subject: Subject) -> None:
    """A pickled network, as `torch.save(network)` writes it, gives the same logits."""
    network = subject.network().eval()
    file = io.BytesIO()
    try:
        torch.save(network, file)
    except Exception as error:
        said = first_line(error)
        if any(text in said for text in ("import of module", "not the same object", "not found as")):
            raise Skipped(f"a class in a trainer's file cannot be imported: {said}") from None
        raise Failure(f"it cannot be pickled ({said})", "keep lambdas and open files out of the network") from None
    file.seek(0)
    x = subject.images()
    with torch.no_grad():
        restored = torch.load(file, weights_only=False)(x)
        require_close(restored, network(x), 1e-6, "a pickled network gives other logits", _STATE)


def check_trace(subject: Subject) -> None:
    """`torch.jit.trace` gives what the network gives, on other values than it was traced with."""
    network = subject.network().eval()
    x, other = subject.images(1), subject.images(1, seed=2)
    with torch.no_grad():
        for values, found in zip((x, other), traced_outputs(network, x, other), strict=True):
            remedy = "branch on shapes instead of values in `forward`"
            require_close(found, network(values), 1e-5, "a trace gives other logits", remedy)


def traced_outputs(network: nn.Module, x: Tensor, *others: Tensor) -> list[Tensor]:
    """Outputs of a trace of the network, made with `x`, for `x` and for further values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # Python numbers are constants in a trace
        warnings.filterwarnings("ignore", message="`torch.jit")
        traced = torch.jit.trace(network, x, check_trace=False)  # which compares graphs; values are compared here
        return [traced(values) for values in (x, *others)]


def listen(network: nn.Module, seen: list[tuple[nn.Module, Tensor, Tensor]]) -> None:
    """Keeps every module's results and inputs, and copies of them as they were."""

    def keep(module: nn.Module, inputs: tuple, result: Any) -> None:
        for part in (*inputs, result):
            if isinstance(part, Tensor):
                seen.append((module, part, part.detach().clone()))

    for module in network.modules():
        # PyTorch's own modules that work in place do so under hooks as well.
        theirs = type(module).__module__.startswith(("torch.", "torchvision.", "torch_"))
        if not (theirs and getattr(module, "inplace", False)):
            module.register_forward_hook(keep)


def check_hooks(subject: Subject) -> None:
    """Forward hooks on every module leave the logits as they are."""
    network = subject.network().eval()
    x = subject.images(1)
    with torch.no_grad():
        expected = network(x)
        try:
            tolerance = max(1e-5, 2 * rounding(network, x))  # under hooks other kernels may run
        except RuntimeError:  # it does not work in float64
            tolerance = 1e-5
        listen(network, [])
        require_close(
            network(x), expected, tolerance, "under hooks the logits differ", "call modules, not their `forward`"
        )


def step_results(network: nn.Module, call: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """Outputs of a call, and the gradients of the network's weights as one vector."""
    network.zero_grad()
    outputs = outputs_of(call, x)
    torch.stack([y.square().mean() for y in outputs]).sum().backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return [*(y.detach() for y in outputs), torch.cat(gradients)]


def check_compile(subject: Subject, backend: str = "aot_eager") -> None:
    """A compiled network gives an eager one's outputs and gradients, and predicts after training."""
    network = without_dropout(subject.network(deep_supervision=True))
    x = subject.images()
    remedy = "avoid Python state that changes between calls, or train with nnUNet_compile=f"
    forget_compilations()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own tracer
            compiled = torch.compile(network, backend=backend)
            found = step_results(network, compiled, x)
            for actual, expected in zip(found, step_results(network, network, x), strict=True):
                require_close(actual, expected, 1e-4, "compiled, a training step differs", remedy)
            network.eval()
            with torch.no_grad():
                for actual, expected in zip(outputs_of(compiled, x[:1]), outputs_of(network, x[:1]), strict=True):
                    require_close(actual, expected, 1e-4, "compiled, the logits differ", remedy)
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"it does not compile ({first_line(error)})", remedy) from error
    finally:
        forget_compilations()


def real_peak(network: nn.Module, x: Tensor) -> int:
    """Bytes at the peak of a real training step, counted as by the trace but on real tensors.

    The loss is the mean of the outputs, which the step holds to its end; the optimiser is nnU-Net's.
    """
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, foreach=False)

    def step() -> None:
        outputs = [y for y in tree_leaves(network(x)) if isinstance(y, Tensor)]
        torch.stack([y.mean() for y in outputs]).sum().backward()

    step()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    live = LiveMemory()
    live.add([*network.parameters(), *network.buffers(), x])
    live.add(state["momentum_buffer"] for state in optimiser.state.values())
    with live:
        step()
        optimiser.step()
    return live.peak


def check_memory(subject: Subject) -> None:
    """The traced memory of a training step is that of a real one; planning relies on it."""
    network = subject.network(deep_supervision=True)
    x = subject.images()
    traced = trace_network(
        network, subject.input_channels, subject.patch_size, len(x), device=subject.device, autocast=False
    ).total
    real = real_peak(network, x)
    if abs(traced / real - 1) > _MEMORY_TOLERANCE:
        raise Failure(
            f"traced {traced / 1e6:.1f} MB, but a real step takes {real / 1e6:.1f} MB",
            "make tensors by PyTorch's operators alone, and give your own operators a fake implementation",
        )
