"""How logits are cut into tiles, and which programs compute them; kernels/README.md draws it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# Rows narrower than this many elements are not worth a fringe.
NARROW = 256
# A program is one warp: few tiles hold a positive, so a warp rarely diverges. 8 elements a thread are 16 bytes of half
# precision, one access.
WARP_SIZE = 64 if torch.version.hip else 32
_THREAD = 8
# Elements of a fringe program.
FRINGE = 64
# Programs of one warp that a processor holds at once, by the bytes of a logit. NVIDIA's limit is 32, which 64 registers
# a thread allow; float32 takes 72, float64 more.
RESIDENT = {2: 32, 4: 28, 8: 16}
# The same where elements may have both parts of the loss, which takes up to 80 registers.
RESIDENT_MIXED = {2: 24, 4: 24, 8: 16}
# More rows a program use its columns' constants again; but a few long programs may end late.
_MOST_ROWS = 64


class Layout(NamedTuple):
    """How rows are cut into tiles; see ``logits_loss_kernel``."""

    vector: int
    groups: int
    period: int
    num_tiles: int


def layout(num_labels: int, logits_stride: int, itemsize: int, warp_size: int = WARP_SIZE) -> Layout:
    """Tiles for rows of this width and stride: 16 bytes an access wherever rows are wide enough for it to pay."""
    vector = 16 // itemsize if num_labels >= NARROW else 1
    period = vector // math.gcd(vector, logits_stride)
    tile = min(_THREAD * warp_size, max(32, 1 << (num_labels - 1).bit_length()))
    return Layout(vector, tile // vector, period, -(-num_labels // tile))


class Grid(NamedTuple):
    """Which programs there are: fringe programs, then for each tile a program for each strip of ``rows_each`` rows."""

    rows_each: int
    num_strips: int
    num_fringe: int
    num_programs: int


def grid(num_rows: int, num_labels: int, cut: Layout, at_once: int) -> Grid:
    """The programs for the rows: whole waves of ``at_once`` programs, as far as rows and tiles allow."""

    def strips(rows_each: int) -> int:
        blocks, rest = divmod(num_rows, rows_each * cut.period)
        return blocks * cut.period + min(rest, cut.period)

    def turns(rows_each: int) -> int:
        # What stands before and after a program's loop takes as long as a row.
        return -(-strips(rows_each) * cut.num_tiles // at_once) * (rows_each + 1)

    most = min(_MOST_ROWS, -(-num_rows // cut.period))
    rows_each = min(range(1, most + 1), key=turns)
    num_strips = strips(rows_each)
    no_fringe = cut.vector == 1 or (cut.period == 1 and num_labels % cut.vector == 0)
    num_fringe = 0 if no_fringe else -(-num_rows * 2 * cut.vector // FRINGE)
    return Grid(rows_each, num_strips, num_fringe, num_fringe + num_strips * cut.num_tiles)


def reciprocal(divisor: int) -> tuple[int, int]:
    """``magic`` and ``shift``: n // divisor is 2 * n * magic >> 32 + shift, for n from 0 to 2**31 - 1.

    Hacker's Delight, chapter 10. magic is an unsigned number of 32 bits, here in two's complement as an int32.
    """
    shift = (divisor - 1).bit_length()
    magic = (1 << 31 + shift) // divisor + 1
    return magic - (1 << 32) if magic >= 1 << 31 else magic, shift
