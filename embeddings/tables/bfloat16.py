"""Rows of bfloat16 in compiled loops: the upper half of a float32's bits, with updates rounded at random."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: numbers for which it is added spread
_INT16, _INT32 = ir.IntType(16), ir.IntType(32)


def splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """The scalar in every lane."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count))


def bfloat16_values(builder: Any, address: Any, width: int) -> Any:
    """``width`` bfloat16 as a float32 vector: their bits are the upper half."""
    bits = builder.load(builder.inttoptr(address, ir.VectorType(_INT16, width).as_pointer()), align=2)
    wide = ir.VectorType(_INT32, width)
    bits = builder.shl(builder.zext(bits, wide), ir.Constant(wide, [16] * width))
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), width))


def _type_add_rounded_block(typing_context: Any, width: Any, at: Any, scale: Any, values: Any, seed: Any) -> Any:
    """Add ``scale`` times ``width`` float32 at ``values`` to bfloat16 at ``at``; see :func:`add_to_bfloat16`."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector, wide = (ir.VectorType(kind, width.literal_value) for kind in (ir.FloatType(), _INT32))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def number(value: int) -> Any:
            return ir.Constant(wide, [value] * wide.count)

        def mixed(bits: Any, shift: int) -> Any:
            return builder.xor(bits, builder.lshr(bits, number(shift)))

        lanes = ir.Constant(wide, [lane * GOLDEN % 2**32 for lane in range(wide.count)])
        noise = builder.add(splat(builder, builder.trunc(args[4], _INT32), wide), lanes)
        noise = builder.mul(mixed(noise, 16), number(0x7FEB352D))  # Wellons' lowbias32
        noise = mixed(builder.mul(mixed(noise, 15), number(0x846CA68B)), 16)
        step = builder.load(builder.inttoptr(args[3], vector.as_pointer()), align=4)
        step = builder.fmul(step, splat(builder, args[2], vector))
        total = builder.fadd(bfloat16_values(builder, args[1], wide.count), step)
        exact = builder.bitcast(total, wide)
        rounded = builder.add(exact, builder.lshr(noise, number(16)))
        rounded = builder.select(builder.fcmp_unordered("uno", total, total), number(0x7FC00000), rounded)  # NaN stays
        bits = builder.trunc(builder.lshr(rounded, number(16)), ir.VectorType(_INT16, wide.count))
        builder.store(bits, builder.inttoptr(args[1], bits.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(width, types.int64, types.float32, types.int64, types.int64), generate


_add_rounded_block: Any = intrinsic(_type_add_rounded_block)


@numba.njit(cache=True)
def add_to_bfloat16(dim: Any, out: Any, scale: Any, values: Any, seed: Any) -> None:
    """Add float32 ``scale`` times float32 [dim] at the address ``values`` to bfloat16 [dim] at the address ``out``.

    The sum is rounded up or down at random, so that it is right in the mean (stochastic rounding, Gupta et al. 2015):
    rounded to nearest, a bfloat16 would lose every step below 1/512 of itself. int64 ``seed`` decides the draw.
    """
    column = 0
    while column < dim:
        to, from_, drawn = out + column * 2, values + column * 4, seed + column * GOLDEN
        if dim - column >= 64:
            _add_rounded_block(64, to, scale, from_, drawn)
            column += 64
        elif dim - column >= 16:
            _add_rounded_block(16, to, scale, from_, drawn)
            column += 16
        else:
            _add_rounded_block(1, to, scale, from_, drawn)
            column += 1
