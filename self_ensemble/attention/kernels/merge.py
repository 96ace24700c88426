"""Outputs of programs that had some segments of a row each, brought together."""

import triton
import triton.language as tl

from self_ensemble.attention.kernels.tiles import NOTHING


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    parts, parts_log, out, rows,
    PARTS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The parts of one row, step and head. parts [PARTS, rows, D], parts_log [PARTS, rows]."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    top = tl.full([], NOTHING, tl.float32)
    total = tl.zeros([], tl.float32)
    sums = tl.zeros([LANES], tl.float32)
    for part in range(PARTS):
        log = tl.load(parts_log + part * rows + row)
        more = tl.load(parts + (part * rows + row) * D + lane, mask=lane < D, other=0.0)
        new_top = tl.maximum(top, log)
        shrink, grow = tl.exp2(top - new_top), tl.exp2(log - new_top)
        total, sums, top = total * shrink + grow, sums * shrink + more * grow, new_top
    tl.store(out + row * D + lane, (sums / total).to(out.dtype.element_ty), mask=lane < D)
