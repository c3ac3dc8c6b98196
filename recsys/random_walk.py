r"""Propagation over the user-item graph for a block of dense columns, in bounded memory.

Everything here is one operator, the two-step random walk of an item-item graph,

.. math:: M = D_I^{-1} R^T D_U^{-1} R, \qquad \tilde R^T \tilde R = D_I^{1/2} M D_I^{-1/2}

with R~ = D_U^{-1/2} R D_I^{-1/2}: a step is the mean of the neighbours' rows, no weight is stored, and any power of
the degrees is applied outside. The columns of a block do not meet, so a result depends neither on the block nor on
threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending, types
from scipy.sparse import csr_array

from recsys.selection import Masks

COLUMNS = 64
"""Columns of a block: a row is four AVX-512 registers."""
_LANES = 16
_VECTORS = COLUMNS // _LANES
SCATTER_COST = 8
"""A scattered add costs about as much as this many lanes of a dense one."""
Floats = npt.NDArray[np.float32]


class Bipartite(NamedTuple):
    """The interactions from both sides.

    Attributes:
        by_user: items of each user, sorted.
        by_item: users of each item, sorted.
    """

    by_user: Masks
    by_item: Masks


def bipartite(matrix: csr_array) -> Bipartite:
    """Both adjacency lists of a csr matrix [users, items]; values are not looked at."""
    rows = csr_array((np.ones(matrix.nnz, np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
    return Bipartite(neighbours(rows), neighbours(rows.T.tocsr()))


def neighbours(matrix: csr_array) -> Masks:
    """Column indices of each row as the kernels take them."""
    return Masks(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32))


@extending.intrinsic
def _sum_rows(typing: Any, indices: Any, first: Any, last: Any, source: Any, target: Any, row: Any) -> Any:
    """``target[row] = sum of source[indices[first:last]]`` for float32 arrays of 64 columns, in the order given.

    The four accumulators stay in registers, which loops over an array do not achieve.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        vector, int64 = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)

        def array(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position]).data

        def vectors(pointer: Any, index: Any) -> list[Any]:
            start = builder.gep(pointer, [builder.mul(index, ir.Constant(int64, COLUMNS))])
            whole = builder.bitcast(start, vector.as_pointer())
            return [builder.gep(whole, [ir.Constant(int64, j)]) for j in range(_VECTORS)]

        ids, rows, out = array(0), array(3), vectors(array(4), args[5])
        zero = ir.Constant(vector, [0.0] * _LANES)
        before = builder.block
        loop, behind = builder.append_basic_block("rows"), builder.append_basic_block("sum")
        builder.cbranch(builder.icmp_signed("<", args[1], args[2]), loop, behind)
        builder.position_at_end(loop)
        place = builder.phi(int64)
        sums = [builder.phi(vector) for _ in range(_VECTORS)]
        index = builder.sext(builder.load(builder.gep(ids, [place])), int64)
        parts = [builder.load(pointer, align=4) for pointer in vectors(rows, index)]
        totals = [builder.fadd(a, b) for a, b in zip(sums, parts, strict=True)]
        following = builder.add(place, ir.Constant(int64, 1))
        place.add_incoming(args[1], before)
        place.add_incoming(following, loop)
        for phi, total in zip(sums, totals, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(total, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[2]), loop, behind)
        builder.position_at_end(behind)
        finals = [builder.phi(vector) for _ in range(_VECTORS)]
        for pointer, final, total in zip(out, finals, totals, strict=True):
            final.add_incoming(zero, before)
            final.add_incoming(total, loop)
            builder.store(final, pointer, align=4)
        return context.get_dummy_value()

    return types.void(indices, first, last, source, target, row), generate


sum_rows: Any = _sum_rows


@numba.njit(nogil=True, cache=True)
def mean_of_neighbours(lists: Masks, source: Floats, target: Floats) -> None:
    """``target[r] = mean of source[n]`` over the neighbours n of r, zero without neighbours.

    Args:
        lists: of R rows.
        source: float32 [N, 64], C order.
        target: float32 [R, 64], C order, overwritten.
    """
    for row in range(len(lists.indptr) - 1):
        first, last = lists.indptr[row], lists.indptr[row + 1]
        sum_rows(lists.indices, first, last, source, target, row)
        if last > first:
            scale = np.float32(1.0) / np.float32(last - first)
            for column in range(COLUMNS):
                target[row, column] *= scale


@numba.njit(nogil=True, cache=True)
def walk(graph: Bipartite, source: Floats, middle: Floats, target: Floats) -> None:
    """``target = M source``, float32 [items, 64]; ``middle`` [users, 64] is scratch."""
    mean_of_neighbours(graph.by_user, source, middle)
    mean_of_neighbours(graph.by_item, middle, target)


@numba.njit(nogil=True, cache=True)
def walk_from(graph: Bipartite, history: Masks, weights: Floats, middle: Floats, target: Floats) -> None:
    """``target = M x`` where column b of x has ``weights[i]`` at the items i of ``history`` row b, else zero.

    While few users are reached their rows are added up one by one, else as :func:`walk` does; in both the terms of a
    sum come in the order of the items, so that they give the same bits.

    Args:
        graph: the interactions.
        history: of at most 64 users.
        weights: float32 [items].
        middle: float32 [users, 64], scratch.
        target: float32 [items, 64], overwritten.
    """
    reached = 0
    for item in history.indices:
        reached += graph.by_item.indptr[item + 1] - graph.by_item.indptr[item]
    if reached * SCATTER_COST >= len(graph.by_user.indices) * COLUMNS // 2:
        fill(history, weights, np.float32(1.0), target)
        mean_of_neighbours(graph.by_user, target.copy(), middle)
    else:
        middle[:] = 0
        for column in range(len(history.indptr) - 1):
            for item in history.indices[history.indptr[column] : history.indptr[column + 1]]:
                for user in graph.by_item.indices[graph.by_item.indptr[item] : graph.by_item.indptr[item + 1]]:
                    middle[user, column] += weights[item]
        for user in range(len(middle)):
            count = graph.by_user.indptr[user + 1] - graph.by_user.indptr[user]
            if count > 0:
                scale = np.float32(1.0) / np.float32(count)
                for column in range(COLUMNS):
                    middle[user, column] *= scale
    mean_of_neighbours(graph.by_item, middle, target)


@numba.njit(nogil=True, cache=True)
def fill(history: Masks, weights: Floats, factor: np.float32, target: Floats) -> None:
    """``target = factor x`` for the x of :func:`walk_from`."""
    target[:] = 0
    for column in range(len(history.indptr) - 1):
        for item in history.indices[history.indptr[column] : history.indptr[column + 1]]:
            target[item, column] = factor * weights[item]
