"""A finished gradient times the upstream gradient."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "num_labels", "stride"])
def scale_kernel(
    # In place: gradient [N, C]. Input: upstream, of no dimensions.
    gradient_ptr,
    upstream_ptr,
    num_rows,
    num_labels,
    stride: tl.int64,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """gradient *= upstream, in place; returns at once where upstream is 1, which only the device knows.

    ALIGNED: 0, or how many elements the distance of rows is a multiple of.
    """
    upstream = tl.load(upstream_ptr)
    if upstream != 1.0:
        blocks = tl.cdiv(num_labels, BLOCK)
        for work in range(tl.program_id(0), num_rows * blocks, tl.num_programs(0)):
            row = (work // blocks).to(tl.int64)
            begin = work % blocks * BLOCK
            column = begin + tl.arange(0, BLOCK)
            start = tl.multiple_of(row * stride, ALIGNED) if ALIGNED else row * stride
            place = gradient_ptr + start + column
            # A mask may cut an access in two, so only the last block of a row has one.
            if begin + BLOCK <= num_labels:
                gradient = tl.load(place)
                tl.store(place, (gradient.to(upstream.dtype) * upstream).to(gradient.dtype))
            else:
                gradient = tl.load(place, mask=column < num_labels)
                tl.store(place, (gradient.to(upstream.dtype) * upstream).to(gradient.dtype), mask=column < num_labels)
