"""The memory that a tensor argument may lie in: strides, offsets, expansions, the negative bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What stands between the elements of a view. A kernel that ignores a stride or an offset reads it, and it shows.
_BETWEEN = {torch.bool: True, torch.uint8: 0x5A}

View = Callable[[Tensor], Tensor]


def _as_it_is(base: Tensor) -> Tensor:
    return base


def _buffer(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    between = float("nan") if like.is_floating_point() else _BETWEEN.get(like.dtype, 77)
    return torch.full(shape, between, dtype=like.dtype)


def _filled(values: Tensor, shape: tuple[int, ...], view: View) -> tuple[Tensor, View]:
    base = _buffer(values, shape)
    view(base).copy_(values)
    return base, view


def _offset(values: Tensor) -> tuple[Tensor, View]:
    shape, number = values.shape, values.numel()
    return _filled(values, (number + 5,), lambda base: base[3 : 3 + number].view(shape))


def _columns(values: Tensor) -> tuple[Tensor, View]:
    width = values.shape[-1]
    return _filled(values, (*values.shape[:-1], width + 6), lambda base: base[..., 1 : 1 + width])


def _every_other(values: Tensor) -> tuple[Tensor, View]:
    width = values.shape[-1]
    return _filled(values, (*values.shape[:-1], 2 * width + 1), lambda base: base[..., 1::2])


def _rows_apart(values: Tensor) -> tuple[Tensor, View]:
    return _filled(values, (2 * len(values), *values.shape[1:]), lambda base: base[::2])


def _transposed(values: Tensor) -> tuple[Tensor, View]:
    return values.transpose(0, 1).contiguous(), lambda base: base.transpose(0, 1)


def _column_of_wider(values: Tensor) -> tuple[Tensor, View]:
    return _filled(values, (len(values), 3), lambda base: base[:, 1])


def _expanded_rows(values: Tensor) -> tuple[Tensor, View]:
    shape = values.shape
    return values[:1].clone(), lambda base: base.expand(shape)


def _expanded_columns(values: Tensor) -> tuple[Tensor, View]:
    shape = values.shape
    return values[..., :1].clone(), lambda base: base.expand(shape)


def _negative_bit(values: Tensor) -> tuple[Tensor, View]:
    return -values, torch._neg_view


_FORMS: dict[str, Callable[[Tensor], tuple[Tensor, View]]] = {
    "contiguous": lambda values: (values, _as_it_is),
    "offset": _offset,
    "columns of a wider": _columns,
    "every other": _every_other,
    "rows apart": _rows_apart,
    "transposed": _transposed,
    "column of a wider": _column_of_wider,
    "expanded rows": _expanded_rows,
    "expanded columns": _expanded_columns,
    "negative bit": _negative_bit,
}


def forms_of(dim: int, negative: bool) -> list[str]:
    """Names of the forms for tensors of ``dim`` dimensions; ``negative`` where the dtype has a negative bit."""
    forms = ["contiguous", "offset", "every other", "expanded rows"]
    forms += (
        ["column of a wider"] if dim == 1 else ["columns of a wider", "rows apart", "transposed", "expanded columns"]
    )
    return [*forms, "negative bit"] if negative else forms


def place(values: Tensor, form: str) -> tuple[Tensor, View]:
    """A tensor with memory of its own, and the view of it that has ``values``, or what an expansion leaves of them.

    Empty tensors stay contiguous: they have no memory that could be misread.
    """
    return _FORMS[form if values.numel() else "contiguous"](values)


def bytes_of(tensor: Tensor) -> Tensor:
    """uint8 view of all memory that a tensor's storage has."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
