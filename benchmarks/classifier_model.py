"""How long the fused classifier should take on a GPU, by the size of its chunks, beside F.linear and our loss.

*Nothing here was measured on a GPU.* ``time_model.py`` has the times of kernels and what is assumed. What the model
decides:

* *Chunks of 256 MiB of weights* (``CHUNK_BYTES`` of ``fused_balanced_loss/classifier/label_chunks.py``), and of 128
  MiB where the backward updates the weights, because a chunk's gradient is float32 then. Chunks that fit the level-2
  cache read the weights once instead of twice, but there are dozens of them, each with seven launches.
* *The loss is no epilogue of the logits' product* (``how="epilogue"``): it would save less than 15 %.

``python benchmarks/predictions.py`` writes the tables.
"""

from __future__ import annotations

from typing import NamedTuple

from hardware import Gpu
from time_model import ASSUMED, Kernel, copy_rate, loss_kernel, terms_kernels

CHUNK_BYTES = 256 << 20
UPDATE_CHUNK_BYTES = 128 << 20
# Labels of a chunk are a multiple of this.
MULTIPLE = 128
# How a chunk may be computed; see `chunk_kernels`.
WAYS = ("separate", "epilogue", "two products")
# A product of the tensor cores takes whole tiles of rows.
_PRODUCT_ROWS = 64
# PyTorch operators of a call besides those of its chunks, a view counted as a quarter of one: where the labels are cut,
# and where they are not.
SETUP, SETUP_OF_ONE_CHUNK, SETUP_OF_LINEAR = 35, 12, 6


class Classifier(NamedTuple):
    """Sizes of a linear classifier with its loss: batch N, labels C, features D; bytes of a number."""

    num_rows: int
    num_labels: int
    num_features: int = 768
    itemsize: int = 2

    def chunks(self, chunk_bytes: float = CHUNK_BYTES) -> tuple[int, int]:
        """Labels of a chunk, whose weights and whose logits take at most ``chunk_bytes`` each, and their number."""
        most = int(chunk_bytes // (self.itemsize * max(self.num_rows, self.num_features)))
        number = -(-self.num_labels // max(MULTIPLE, most // MULTIPLE * MULTIPLE))
        labels = -(-self.num_labels // (number * MULTIPLE)) * MULTIPLE
        return min(labels, self.num_labels), -(-self.num_labels // labels)


def floor(one: Classifier, gpu: Gpu) -> dict[str, float]:
    """Seconds of what must happen: the weight is read once and its gradient written once; three products."""
    weight = one.itemsize * one.num_labels * (one.num_features + 1)
    features = one.itemsize * one.num_rows * one.num_features
    flops = 6 * one.num_rows * one.num_labels * one.num_features
    return {
        "memory": 2 * (weight + features) / copy_rate(gpu),
        "tensor cores": flops / (gpu.tensor_flops * ASSUMED.tensor),
    }


def chunk_kernels(one: Classifier, gpu: Gpu, labels: int, how: str = "separate", apart: bool = False) -> list[Kernel]:
    """The kernels of one chunk of ``labels``, forward and backward.

    how: "separate" kernels; the loss as the "epilogue" of the logits' product, which then are never written; or "two
        products", logits and the weight's gradient, in one kernel with the loss.
    apart: the gradient has memory of its own, as in a loss over whole logits.
    """
    rows, width, size = one.num_rows, one.num_features, one.itemsize
    weight, logits, features = size * labels * width, size * rows * labels, size * rows * width
    flops = 2 * -(-rows // _PRODUCT_ROWS) * _PRODUCT_ROWS * labels * width
    usable = gpu.cache_bytes * ASSUMED.cache
    # The share of what is read again that the cache still has: only logits have passed since, or weights have, too.
    near, far = (min(1.0, usable / since) for since in (logits * (2 if apart else 1), weight + logits))
    written, logits_near = _split(logits, near), _split(logits, near)
    logits_far, weight_again = _split(logits, far), _split(weight, far)
    product = Kernel("logits", weight + written[0], features + written[1], flops)
    terms = terms_kernels(rows, labels)
    loss = loss_kernel(rows, labels, logits_far[0] + written[0], logits_far[1] + written[1])
    bias = Kernel("bias gradient", *logits_near, waves=1.0)
    # Few tiles of features for many labels: the product is cut along the labels, and its parts are added.
    d_features = Kernel(
        "features' gradient", logits_near[0] + weight_again[0], logits_near[1] + weight_again[1], flops, launches=2
    )
    d_weight = Kernel("weight gradient", weight + logits_far[0], features + logits_far[1], flops)
    if how == "separate":
        return [product, *terms, loss, bias, d_features, d_weight]
    both = product._replace(name="logits and loss", elements=loss.elements, instructions=loss.instructions, triton=True)
    if how == "epilogue":
        return [*terms, both, bias, d_features, d_weight]
    both = both._replace(memory_bytes=both.memory_bytes + weight, flops=2 * flops)
    return [*terms, both, bias, d_features]


def _split(number: float, share: float) -> tuple[float, float]:
    """Bytes from memory, and from the cache."""
    return number * (1 - share), number * share


def classifier_kernels(
    one: Classifier, gpu: Gpu, chunk_bytes: float = CHUNK_BYTES, how: str = "separate"
) -> list[Kernel]:
    """The kernels of a forward and a backward; the last chunk has what is left."""
    labels, number = one.chunks(chunk_bytes)
    last = one.num_labels - (number - 1) * labels
    return chunk_kernels(one, gpu, labels, how) * (number - 1) + chunk_kernels(one, gpu, last, how)


def setup_operators(one: Classifier, chunk_bytes: float = CHUNK_BYTES) -> int:
    return SETUP_OF_ONE_CHUNK if one.chunks(chunk_bytes)[1] == 1 else SETUP


def linear_kernels(one: Classifier, gpu: Gpu) -> list[Kernel]:
    """F.linear and our loss over whole logits: their gradient is another [N, C], and the backward looks at the
    upstream gradient."""
    upstream = Kernel("upstream gradient", waves=1.0, triton=True)
    return [*chunk_kernels(one, gpu, one.num_labels, apart=True), upstream]


def update_kernels(one: Classifier, gpu: Gpu, keep_gradient: bool = False) -> list[Kernel]:
    """A step with the update in the backward, which makes logits and loss again, and with them the gradients.

    keep_gradient: the forward would keep the gradient of all logits, [N, C]
        in bfloat16, and the backward would not make them again.
    """
    labels, number = one.chunks(UPDATE_CHUNK_BYTES)
    product, *before, loss, bias, d_features, d_weight = chunk_kernels(one, gpu, labels)
    weights = labels * one.num_features
    # The gradient of a chunk's weight is float32; it is written, and read by the update.
    gradient = d_weight._replace(memory_bytes=d_weight.memory_bytes + (4 - one.itemsize) * weights)
    update = Kernel("update", weights * (4 + 2 * one.itemsize), triton=True)
    logits = one.itemsize * one.num_rows * labels
    if keep_gradient:
        # All logits' gradients pass through memory before the backward reads them.
        loss = loss._replace(memory_bytes=loss.memory_bytes + logits)
        bias = bias._replace(memory_bytes=logits, cache_bytes=0.0)
        forward, backward = [product, *before, loss], [bias, d_features, gradient, update]
    else:
        value = loss._replace(name="loss alone", memory_bytes=max(0.0, loss.memory_bytes - logits))
        forward, backward = [product, *before, value], [product, *before, loss, bias, d_features, gradient, update]
    return (forward + backward) * number
