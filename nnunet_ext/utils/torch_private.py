"""All uses of private parts of PyTorch in this package.

PyTorch may change them in any release. Such changes are handled here alone, and `tests/utils/test_torch_private.py`
runs all of it under the installed release.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "EXPORT_LOGGER",
    "BatchNorm",
    "DataDependentOutputException",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "all_finite",
    "autocast_without_gpu",
    "forget_node",
    "has_hooks",
    "in_function_transform",
    "input_metadata",
    "nodes_kept",
    "optimisers_without_values",
    "recorded_scan",
    "script",
    "sequence_number",
    "storage_key",
    "tree_leaves",
    "tree_map_only",
    "uncompiled",
    "unset_fake_temporarily",
]

EXPORT_LOGGER = "torch._export.serde.serialize"
"""The logger that reports what torch.export writes."""
_GRAPH_TASK = 1


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks observe calls of the module or recompute its weights before them."""
    own = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(own) or any(
        (
            _module._global_forward_pre_hooks,
            _module._global_forward_hooks,
            _module._global_backward_pre_hooks,
            _module._global_backward_hooks,
        )
    )


def in_function_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp) is active; under torch.compile the operators handle them."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor has NaN or infinite values; one synchronisation with the device for all of them."""
    if not tensors:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all())


def storage_key(storage: torch.UntypedStorage) -> int:
    """The address of a storage, unique while it lives."""
    return storage._cdata


def sequence_number(node: Any) -> int:
    """The order in which nodes of autograd's graph were created."""
    return node._sequence_nr()


def input_metadata(node: Any) -> Any:
    """Shapes, types and devices of the gradients that reach a node."""
    return node._input_metadata


@contextmanager
def nodes_kept() -> Iterator[None]:
    """Context in which the nodes of every torch.autograd.Function live until `forget_node`, not only as long as others.

    Up to PyTorch 2.11, the Python object of such a node does not keep the node itself; only the nodes that follow do,
    and a node that is asked for anything after they have gone raises an error. So another node is made that follows.
    """
    if _objects_keep_nodes():
        yield
        return
    apply = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined, unused-ignore]

    def keeping(cls: type, *arguments: Any, **named: Any) -> Any:
        outputs = apply(cls, *arguments, **named)
        for y in outputs if isinstance(outputs, tuple) else (outputs,):
            if isinstance(y, Tensor) and y.grad_fn is not None:
                with torch.enable_grad():
                    y.grad_fn.follower = y.view_as(y).grad_fn  # type: ignore[attr-defined]
                break
        return outputs

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(keeping)):
        yield


def forget_node(node: Any) -> None:
    """Ends what `nodes_kept` did for a node; its saved tensors go with it."""
    if hasattr(node, "follower"):
        del node.follower


@cache
def _objects_keep_nodes() -> bool:
    with unset_fake_temporarily(), torch.enable_grad():
        node: Any = _Copy.apply(torch.ones((), requires_grad=True)).grad_fn
    try:
        return bool(node._sequence_nr() >= 0)
    except RuntimeError:
        return False


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()


@contextmanager
def autocast_without_gpu() -> Iterator[None]:
    """Context in which autocast to CUDA's types and the recomputation of checkpoints work without a GPU."""
    with (
        # Without a GPU, PyTorch disables autocast; checkpoints identify backward passes by the engine's number.
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch._C._current_graph_task_id", return_value=_GRAPH_TASK),
    ):
        yield


@contextmanager
def optimisers_without_values() -> Iterator[None]:
    """Context in which optimisers step on fake tensors: where they ask how often they have stepped, it is once."""
    modules = [module for name, module in sys.modules.items() if name.startswith("torch.optim.")]
    with ExitStack() as stack:
        for module in modules:
            if hasattr(module, "_get_value"):
                stack.enter_context(mock.patch.object(module, "_get_value", return_value=1.0))
        yield


def uncompiled(network: nn.Module) -> nn.Module:
    """The network that torch.compile may have wrapped, whose weights checkpoints hold."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # its import takes a second and 80 MB
    return network._orig_mod if compiler is not None and isinstance(network, compiler.OptimizedModule) else network


def forget_compilations() -> None:
    """Removes everything that torch.compile has compiled in this process."""
    torch.compiler.reset()


def recorded_scan(
    step: Callable[..., tuple[Tensor, Tensor]], state: Tensor, inputs: Sequence[Tensor], *constants: Tensor
) -> tuple[Tensor, Tensor]:
    """The last state and the stacked results of `step` over the first axis of the inputs, as one operator of a graph.

    PyTorch's own function around this operator compiles `step` at every call, which takes seconds.

    Args:
        step: Function of the state, a slice of each input, and the constants; its results must not share memory with
            its arguments.
        state: First state.
        inputs: Tensors over whose first axis the loop runs.
        constants: Tensors that every step gets.

    Raises:
        RuntimeError: if this release of PyTorch has no such operator.
    """
    try:
        from torch._higher_order_ops.scan import scan_op
    except ImportError as error:
        raise RuntimeError(
            f"PyTorch {torch.__version__} has no operator for scans; 2.6 is the first with it"
        ) from error
    last, results = scan_op(lambda *tensors: list(step(*tensors)), [state], list(inputs), constants)
    return last, results


def script(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in TorchScript, without PyTorch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        return torch.jit.script(function)
