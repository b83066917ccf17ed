"""Matrix products of a chunk: half precision is multiplied as such and accumulated in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import device as devices
from ..backends.problem import compute_dtype


def reads_gaps(matrix: Tensor) -> bool:
    """Whether a product with the matrix may read the memory behind its rows.

    For bfloat16 with AMX and an odd number of columns, oneDNN multiplies the number behind a row by 0: what is no
    number there spoils the product.
    """
    return devices.kind(matrix.device) == "cpu" and matrix.dtype.itemsize == 2


def without_gaps(matrix: Tensor) -> Tensor:
    """The matrix, or a copy of its rows side by side where a product would read what lies between them."""
    return matrix.contiguous() if reads_gaps(matrix) else matrix


# On a GPU, and where all dtypes are one, each function is one PyTorch operator. On the CPU half precision takes more,
# because products there round to half precision.


def product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """a [m, k] @ b [k, n] to ``out`` [m, n], of the dtype of a or float32."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif devices.multiplies_into_float32(a.device):
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    elif a.dtype == torch.float16:
        # A sum over the batch can leave float16's range.
        torch.mm(a.float(), b.float(), out=out)
    else:
        out.copy_(torch.mm(a, b))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """a [m, k] @ b [k, n] added to ``total`` [m, n], of the dtype of a or float32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif devices.multiplies_into_float32(a.device):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    elif a.dtype == torch.float16:
        total.addmm_(a.float(), b.float())
    else:
        total.add_(torch.mm(a, b))


def scaled_product(out: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """scale * a [m, k] @ b [k, n] to ``out`` [m, n] of any dtype; if that is float32, without another pass over it."""
    if scale == 1.0 and out.dtype in (a.dtype, torch.float32):
        product(out, a, b)
    elif out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=0, alpha=scale, out=out)
    elif out.dtype != torch.float32 or a.dtype.itemsize != 2:
        wide = torch.empty(out.shape, dtype=compute_dtype(a.dtype), device=out.device)
        scaled_product(wide, a, b, scale)
        out.copy_(wide)
    elif devices.multiplies_into_float32(a.device):
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=0, alpha=scale, out=out)
    elif a.dtype == torch.float16:
        torch.addmm(out, a.float(), b.float(), beta=0, alpha=scale, out=out)
    else:
        # A factor with a dimension makes the multiplication float32; a number would leave it in half precision.
        torch.mul(torch.mm(a, b), out.new_full((1,), scale), out=out)
