"""The inner loops of the table kernels, as vectors: sums of random rows with software prefetch, and updates of a row.

Plain compiled loops reload and store the sum for each row and check for overlap; here LLVM is handed the loop with its
accumulator as one vector, which is 2 to 4 times as fast on rows in cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from embeddings.tables.bfloat16 import add_to_bfloat16, bfloat16_values, splat
from embeddings.tables.int8 import add_to_int8, int8_values

AHEAD = 16  # rows between a prefetch and its use
LINE = 64  # bytes of a cache line
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _emit_prefetch(builder: Any, address: Any, write: int = 0) -> None:
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
    keep, data = _INT32(3), _INT32(1)
    builder.call(function, [builder.inttoptr(address, cgutils.voidptr_t), _INT32(write), keep, data])


def _type_prefetch_line(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to write to it (``llvm.prefetch``)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_prefetch(builder, args[0], write=1)
        return context.get_dummy_value()

    return types.void(types.int64), generate


_prefetch_line: Any = intrinsic(_type_prefetch_line)


def _type_sum_block(
    typing_context: Any, width: Any, weighted: Any, value_bytes: Any, table: Any, row_bytes: Any, index: Any,
    index_bytes: Any, weights: Any, start: Any, stop: Any, last: Any, out: Any, end: Any,
) -> Any:  # fmt: skip
    """``width`` columns of the sum of rows ``start`` to ``stop``; see :func:`sum_rows`. Addresses are int64.

    ``value_bytes`` tells float32, bfloat16 and int8; ``end`` is how far behind the first column an int8 row ends.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (width, weighted, value_bytes)):
        return None
    vector, stored = ir.VectorType(ir.FloatType(), width.literal_value), value_bytes.literal_value
    scaled, lines = bool(weighted.literal_value), range(0, width.literal_value * stored + (stored == 1), LINE)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, row_bytes, index, index_bytes, weights, start, stop, last, out, end = args[3:]

        def load(kind: Any, address: Any) -> Any:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)

        def row_address(i: Any) -> Any:
            row = builder.zext(load(_INT32, builder.add(index, builder.mul(i, index_bytes))), _INT64)
            return builder.add(table, builder.mul(row, row_bytes))

        total = cgutils.alloca_once(builder, vector)  # type: ignore[no-untyped-call]
        builder.store(ir.Constant(vector, [0.0] * vector.count), total)
        with cgutils.for_range_slice(builder, start, stop, _INT64(1)) as (i, _):
            ahead = builder.add(i, _INT64(AHEAD))
            later = row_address(builder.select(builder.icmp_signed("<", ahead, last), ahead, last))
            for line in lines:
                _emit_prefetch(builder, builder.add(later, _INT64(line)))
            at = row_address(i)
            match stored:
                case 1:
                    values = int8_values(builder, at, vector.count, builder.add(at, end))
                case 2:
                    values = bfloat16_values(builder, at, vector.count)
                case _:
                    values = load(vector, at)
            if scaled:
                scale = load(ir.FloatType(), builder.add(weights, builder.mul(i, _INT64(4))))
                values = builder.fmul(values, splat(builder, scale, vector))
            builder.store(builder.fadd(builder.load(total), values), total)
        builder.store(builder.load(total), builder.inttoptr(out, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    address = types.int64
    return types.void(width, weighted, value_bytes, *[address] * 10), generate


def _type_square_block(typing_context: Any, width: Any, at: Any) -> Any:
    """Sum of the squares of ``width`` (a power of two) float32 in a fixed order: halves are added until one is left."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = ir.VectorType(ir.FloatType(), width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = builder.load(builder.inttoptr(args[1], vector.as_pointer()), align=4)
        total, count = builder.fmul(total, total), vector.count
        while count > 1:
            count //= 2
            lanes = [range(count), range(count, 2 * count)]
            halves = [ir.Constant(ir.VectorType(_INT32, count), list(half)) for half in lanes]
            total = builder.fadd(*(builder.shuffle_vector(total, total, half) for half in halves))
        return builder.extract_element(total, _INT32(0))

    return types.float32(width, types.int64), generate


def _type_add_block(typing_context: Any, width: Any, at: Any, scale: Any, values: Any) -> Any:
    """Add ``scale`` times ``width`` float32 at the address ``values`` to those at ``at``."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = ir.VectorType(ir.FloatType(), width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, from_ = (builder.inttoptr(args[i], vector.as_pointer()) for i in (1, 3))
        scaled = builder.fmul(builder.load(from_, align=4), splat(builder, args[2], vector))
        builder.store(builder.fadd(builder.load(to, align=4), scaled), to, align=4)
        return context.get_dummy_value()

    return types.void(width, types.int64, types.float32, types.int64), generate


def _type_adagrad_block(typing_context: Any, width: Any, at: Any, state: Any, values: Any, lr: Any, eps: Any) -> Any:
    """Adagrad's update of ``width`` float32 at ``at`` and their state: s += g^2; w -= lr g / (sqrt(s) + eps)."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = ir.VectorType(ir.FloatType(), width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, state, from_ = (builder.inttoptr(args[i], vector.as_pointer()) for i in (1, 2, 3))
        gradient = builder.load(from_, align=4)
        total = builder.fadd(builder.load(state, align=4), builder.fmul(gradient, gradient))
        builder.store(total, state, align=4)
        name, kind = f"llvm.sqrt.v{vector.count}f32", ir.FunctionType(vector, [vector])
        root = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [total])  # type: ignore[no-untyped-call]
        step = builder.fmul(gradient, splat(builder, args[4], vector))
        step = builder.fdiv(step, builder.fadd(root, splat(builder, args[5], vector)))
        builder.store(builder.fsub(builder.load(weights, align=4), step), weights, align=4)
        return context.get_dummy_value()

    return types.void(width, types.int64, types.int64, types.int64, types.float32, types.float32), generate


def _type_adam_block(
    typing_context: Any, width: Any, at: Any, mean: Any, square: Any, values: Any, lr: Any, eps: Any, b1: Any, b2: Any,
    correction: Any,
) -> Any:  # fmt: skip
    """Adam's update of ``width`` float32 at ``at`` and their two moments; see :func:`adam`."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = ir.VectorType(ir.FloatType(), width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, mean, square, from_ = (builder.inttoptr(args[i], vector.as_pointer()) for i in (1, 2, 3, 4))
        lr, eps, b1, b2, correction = (splat(builder, arg, vector) for arg in args[5:])
        one = ir.Constant(vector, [1.0] * vector.count)

        def decayed(at: Any, decay: Any, value: Any) -> Any:
            kept = builder.fmul(decay, builder.load(at, align=4))
            moved = builder.fadd(kept, builder.fmul(builder.fsub(one, decay), value))
            builder.store(moved, at, align=4)
            return moved

        gradient = builder.load(from_, align=4)
        average = decayed(mean, b1, gradient)
        squares = decayed(square, b2, builder.fmul(gradient, gradient))
        name, kind = f"llvm.sqrt.v{vector.count}f32", ir.FunctionType(vector, [vector])
        root = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [squares])  # type: ignore[no-untyped-call]
        step = builder.fdiv(builder.fmul(lr, average), builder.fadd(builder.fdiv(root, correction), eps))
        builder.store(builder.fsub(builder.load(weights, align=4), step), weights, align=4)
        return context.get_dummy_value()

    return types.void(width, *[types.int64] * 4, *[types.float32] * 5), generate


_sum_block: Any = intrinsic(_type_sum_block)
_square_block: Any = intrinsic(_type_square_block)
_add_block: Any = intrinsic(_type_add_block)
_adagrad_block: Any = intrinsic(_type_adagrad_block)
_adam_block: Any = intrinsic(_type_adam_block)


def _summing(stored: int) -> Any:
    """:func:`sum_rows` for tables whose values have so many bytes: float32, bfloat16 or int8."""

    @numba.njit(cache=True)
    def sum_rows(
        dim: Any, table: Any, row_bytes: Any, index: Any, index_bytes: Any, weights: Any, start: Any, stop: Any,
        last: Any, out: Any,
    ) -> None:  # fmt: skip
        """Write the sum of ``table[index[i]]``, times ``weights[i]``, over i from ``start`` to ``stop``.

        The order of the additions is the order of i. Nothing is checked: these are addresses.

        Args:
            dim: columns of the table and of the result.
            table: address of its first row.
            row_bytes: bytes from one row of the table to the next.
            index: address of the first int32 row index.
            index_bytes: bytes from one index to the next.
            weights: address of float32 weights, one for each index; 0 for ones.
            start: first i.
            stop: one past the last i.
            last: highest i that may be read, for prefetching beyond ``stop``.
            out: address of float32 [dim].
        """
        column = 0
        while column < dim:
            at, to, end = table + column * stored, out + column * 4, dim - column
            if dim - column >= 64:
                if weights:
                    _sum_block(64, 1, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                else:
                    _sum_block(64, 0, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                column += 64
            elif dim - column >= 16:
                if weights:
                    _sum_block(16, 1, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                else:
                    _sum_block(16, 0, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                column += 16
            else:
                if weights:
                    _sum_block(1, 1, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                else:
                    _sum_block(1, 0, stored, at, row_bytes, index, index_bytes, weights, start, stop, last, to, end)
                column += 1

    return sum_rows


sum_rows: Any = _summing(4)
_sum_bfloat16: Any = _summing(2)
_sum_int8: Any = _summing(1)


@numba.njit(cache=True)
def sum_stored(value_bytes: Any, dim: Any, table: Any, row_bytes: Any, where: Any) -> None:
    """:func:`sum_rows` of float32, bfloat16 or int8 (:mod:`embeddings.tables.int8`), by the bytes of a value.

    ``where`` is the address of int32 indices without gaps, and ``weights``, ``start``, ``stop``, ``last`` and ``out``.
    """
    index, weights, start, stop, last, out = where
    if value_bytes == 4:
        sum_rows(dim, table, row_bytes, index, 4, weights, start, stop, last, out)
    elif value_bytes == 2:
        _sum_bfloat16(dim, table, row_bytes, index, 4, weights, start, stop, last, out)
    else:
        _sum_int8(dim, table, row_bytes, index, 4, weights, start, stop, last, out)


@numba.njit(cache=True)
def sum_squares(dim: Any, values: Any) -> Any:
    """Sum of the squares of float32 [dim] at an address, in an order that only ``dim`` decides."""
    total, column = np.float32(0), 0
    while column < dim:
        at = values + column * 4
        if dim - column >= 64:
            total += _square_block(64, at)
            column += 64
        elif dim - column >= 16:
            total += _square_block(16, at)
            column += 16
        else:
            total += _square_block(1, at)
            column += 1
    return total


@numba.njit(cache=True)
def add_scaled(dim: Any, out: Any, scale: Any, values: Any) -> None:
    """Add float32 ``scale`` times float32 [dim] at the address ``values`` to float32 [dim] at the address ``out``."""
    column = 0
    while column < dim:
        to, from_ = out + column * 4, values + column * 4
        if dim - column >= 64:
            _add_block(64, to, scale, from_)
            column += 64
        elif dim - column >= 16:
            _add_block(16, to, scale, from_)
            column += 16
        else:
            _add_block(1, to, scale, from_)
            column += 1


@numba.njit(cache=True)
def add_stored(value_bytes: Any, dim: Any, out: Any, scale: Any, values: Any, seed: Any) -> None:
    """:func:`add_scaled` to a row of float32, or one of bfloat16 or int8, rounded by a draw of ``seed``."""
    if value_bytes == 4:
        add_scaled(dim, out, scale, values)
    elif value_bytes == 2:
        add_to_bfloat16(dim, out, scale, values, seed)
    else:
        add_to_int8(dim, out, scale, values, seed)


@numba.njit(cache=True)
def adagrad(dim: Any, weights: Any, state: Any, gradient: Any, lr: Any, eps: Any) -> None:
    """Adagrad's update of float32 [dim] at the addresses ``weights`` and ``state`` by that at ``gradient``."""
    column = 0
    while column < dim:
        at, to, from_ = weights + column * 4, state + column * 4, gradient + column * 4
        if dim - column >= 16:
            _adagrad_block(16, at, to, from_, lr, eps)
            column += 16
        else:
            _adagrad_block(1, at, to, from_, lr, eps)
            column += 1


@numba.njit(cache=True)
def adam(dim: Any, weights: Any, moments: Any, gradient: Any, rates: Any) -> None:
    """Adam's update of float32 [dim] at the address ``weights`` by that at ``gradient``.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m / (sqrt(v) / correction + eps).

    Args:
        dim: columns.
        weights: address.
        moments: addresses of m and of v.
        gradient: address.
        rates: float32 lr, eps, b1, b2 and correction.
    """
    column = 0
    while column < dim:
        shift = column * 4
        at, mean, square, from_ = weights + shift, moments[0] + shift, moments[1] + shift, gradient + shift
        if dim - column >= 16:
            _adam_block(16, at, mean, square, from_, rates[0], rates[1], rates[2], rates[3], rates[4])
            column += 16
        else:
            _adam_block(1, at, mean, square, from_, rates[0], rates[1], rates[2], rates[3], rates[4])
            column += 1


@numba.njit(cache=True)
def prefetch_row(table: Any, row: Any, row_bytes: Any) -> None:
    """Ask for the cache lines of one row of the table at an address, to write to it."""
    start = table + row * row_bytes
    for line in range(0, row_bytes, LINE):
        _prefetch_line(start + line)
