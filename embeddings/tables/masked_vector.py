"""Rows of which only some columns are stored: a bit mask in words of 16 columns, and the values one after the other.

AVX-512 spreads and packs 16 float32 by such a word in one instruction (``vexpandps``, ``vcompressps``), which LLVM
offers as masked loads and stores; on other processors it writes a loop for them, with the same result.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from embeddings.tables.addresses import array_at

WORD = 16  # columns of a mask word
_WORD, _INT32, _INT64, _FLOAT = ir.IntType(WORD), ir.IntType(32), ir.IntType(64), ir.FloatType()
_LANES, _BITS, _POINTER = ir.VectorType(_FLOAT, WORD), ir.VectorType(ir.IntType(1), WORD), ir.PointerType(_FLOAT)
_ZEROS = ir.Constant(_LANES, [0.0] * WORD)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an intrinsic of LLVM for 16 float32."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), arguments)  # type: ignore[no-untyped-call]


def _load(builder: Any, pointer: Any, bits: Any) -> Any:
    """The lanes of 16 float32 in memory whose bit is set, 0 in the others, which are not read."""
    return _call(builder, "masked.load.v16f32.p0", _LANES, [pointer, _INT32(4), bits, _ZEROS])


def _type_expand_add(typing_context: Any, word: Any, values: Any, scale: Any, out: Any) -> Any:
    """Add ``scale`` times the packed float32 at the address ``values`` to the columns of ``word`` at ``out``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _BITS)
        packed, to = (builder.inttoptr(args[i], _POINTER) for i in (1, 3))
        spread = _call(builder, "masked.expandload.v16f32", _LANES, [packed, bits, _ZEROS])
        first = builder.insert_element(ir.Constant(_LANES, ir.Undefined), args[2], _INT32(0))
        factor = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, WORD), [0] * WORD))
        total = builder.fadd(_load(builder, to, bits), builder.fmul(spread, factor))
        _call(builder, "masked.store.v16f32.p0", ir.VoidType(), [total, to, _INT32(4), bits])
        return context.get_dummy_value()

    return types.void(types.uint16, types.int64, types.float32, types.int64), generate


def _type_pack(typing_context: Any, word: Any, full: Any, packed: Any) -> Any:
    """Write the columns of ``word`` of the float32 at the address ``full`` one after the other to ``packed``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _BITS)
        from_, to = (builder.inttoptr(args[i], _POINTER) for i in (1, 2))
        _call(builder, "masked.compressstore.v16f32", ir.VoidType(), [_load(builder, from_, bits), to, bits])
        return context.get_dummy_value()

    return types.void(types.uint16, types.int64, types.int64), generate


def _type_ones(typing_context: Any, bits: Any) -> Any:
    """Number of set bits of a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "ctpop.i64", _INT64, [args[0]])

    return types.int64(types.uint64), generate


_expand_add: Any = intrinsic(_type_expand_add)
_pack: Any = intrinsic(_type_pack)
ones: Any = intrinsic(_type_ones)


@numba.njit(cache=True)
def count_ones(mask: Any, words: Any) -> Any:
    """Set bits of ``words`` uint16 at the address ``mask``."""
    total, longs = 0, array_at(mask, words // 4, np.uint64(0))
    for long in longs:
        total += ones(long)
    for word in array_at(mask + len(longs) * 8, words % 4, np.uint16(0)):
        total += ones(np.uint64(word))
    return total


@numba.njit(cache=True)
def expand_add(mask: Any, words: Any, values: Any, scale: Any, out: Any) -> None:
    """Add ``scale`` times a stored row to a full one.

    Args:
        mask: address of uint16 [words], bit c of word w is column 16 w + c.
        words: of the row.
        values: address of the float32 of the set bits.
        scale: float32.
        out: address of float32 columns; those without a bit are neither read nor written.
    """
    for w in range(words):
        word = array_at(mask + w * 2, 1, np.uint16(0))[0]
        _expand_add(word, values, scale, out + w * WORD * 4)
        values += ones(np.uint64(word)) * 4


@numba.njit(cache=True)
def pack(mask: Any, words: Any, full: Any, packed: Any) -> None:
    """Write the columns of a full row that have a bit one after the other; arguments as in :func:`expand_add`."""
    for w in range(words):
        word = array_at(mask + w * 2, 1, np.uint16(0))[0]
        _pack(word, full + w * WORD * 4, packed)
        packed += ones(np.uint64(word)) * 4
