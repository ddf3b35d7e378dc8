"""Backward passes that raise a clear error if they are differentiated a second time."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def differentiable_once(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates an autograd function's `backward`: a second derivative is an error that names the operator.

    PyTorch's own decorator names nothing, and takes gradients for constants where only the saved tensors need one, so
    that second derivatives could lack a term without an error.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return results
            if not any(x is not None and x.requires_grad for x in (*grads, *ctx.saved_tensors)):
                return results
            return tuple(None if x is None else _Refused.apply(name, x.requires_grad_()) for x in results)

        return once

    return decorate


class _Refused(torch.autograd.Function):
    """A gradient that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"nnunet_ext::{ctx.name} has no second derivative: its gradient cannot be differentiated again "
            "(create_graph=True)"
        )
