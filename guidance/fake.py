"""Tensors that have shapes and no numbers: a module of them runs in no time, and its products and its memory can be counted."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from guidance.errors import UserError

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""Tensors that are made while it is entered have shapes and no numbers."""


def imagine(module: nn.Module) -> None:
    """Parameters and buffers become fake tensors on the CPU, in place; what is shared stays so."""
    made: dict[Tensor, Tensor] = {}
    with FAKE:
        for part in module.modules():
            for name, old in part._parameters.items():
                if old is not None:
                    new = made.setdefault(old, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad))
                    part._parameters[name] = cast(nn.Parameter, new)
            for name, held in part._buffers.items():
                if held is not None:
                    part._buffers[name] = made.setdefault(held, torch.empty(held.shape, dtype=held.dtype))


@contextmanager
def shapes_only(what: str) -> Iterator[None]:
    """Fake tensors inside; UserError where numbers would be needed."""
    try:
        with FAKE:
            yield
    except UserError:
        raise
    except Exception as error:  # of torch's, of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{what} cannot be run on shapes alone, so that its cost is not found: {reason}") from error


def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the fused attention: the scores, and the mean of the values."""
    return int(sdpa_flop_count(query, key, value))


def attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The scores once more, and the products of their gradients."""
    return int(sdpa_backward_flop_count(grad, query, key, value))


def counter() -> FlopCounterMode:
    """torch's, which counts the fused attention of GPUs, told of that of the CPU, where fake tensors are."""
    ops = torch.ops.aten
    fused, back = ops._scaled_dot_product_flash_attention_for_cpu, ops._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={fused: attention, back: attention_backward})


class Alive(TorchDispatchMode):
    """The bytes of all tensors that were made while it is entered and still are, and their ``peak``; each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self._held | given:
                self._held.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, number: int, size: int) -> None:
        self._held.discard(number)
        self.now -= size
