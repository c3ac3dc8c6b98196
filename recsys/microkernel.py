"""Inner products of a few users with a panel of items, kept in registers, as LLVM vector code for numba.

A score is ``fma(u[d-1], v[d-1], .. fma(u[0], v[0], 0))``, in this order, wherever the pair stands in a tile: so a
score does not depend on batch size, threads or the order of the items, and equal vectors get equal scores. A BLAS
promises none of this. Blocking as in Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication":
24 accumulators of 16 floats are the 6 x 64 tile, 10 loads feed 24 multiply-adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

USERS = 6
ITEMS = 64
_LANES = 16
_VECTORS = ITEMS // _LANES

get_function: Any = cgutils.get_or_insert_function
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, _LANES)
_INT64 = ir.IntType(64)


def pack(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Item vectors [N, D] as panels [ceil(N / 64), D, 64], the last one filled up with zeros."""
    count, dim = vectors.shape
    panels = np.zeros((-(-count // ITEMS) * ITEMS, dim), dtype=np.float32)
    panels[:count] = vectors
    return np.ascontiguousarray(panels.reshape(-1, ITEMS, dim).transpose(0, 2, 1))


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_INT64, value)


def _fused(builder: ir.IRBuilder, kind: ir.Type, name: str) -> ir.Function:
    """``a * b + c``, fused where the processor can."""
    return get_function(builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{name}")


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    lane = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


def _products(builder: ir.IRBuilder, users: ir.Value, panel: ir.Value, dim: ir.Value) -> list[list[ir.Value]]:
    """The loop over d; leaves the builder behind it and returns the 6 x 4 vectors of scores."""
    fma = _fused(builder, _VECTOR, f"v{_LANES}f32")
    before, loop = builder.block, builder.append_basic_block("dim")
    behind = builder.append_basic_block("scores")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    sums = [[builder.phi(_VECTOR) for _ in range(_VECTORS)] for _ in range(USERS)]
    user = builder.gep(users, [builder.mul(step, _constant(USERS))])
    items = _load_vectors(builder, builder.gep(panel, [builder.mul(step, _constant(ITEMS))]))
    results = []
    for i in range(USERS):
        value = _splat(builder, builder.load(builder.gep(user, [_constant(i)]), align=4))
        results.append([builder.call(fma, [value, items[j], sums[i][j]]) for j in range(_VECTORS)])
    following = builder.add(step, _constant(1))
    builder.cbranch(builder.icmp_signed("<", following, dim), loop, behind)
    step.add_incoming(_constant(0), before)
    step.add_incoming(following, loop)
    for phis, values in zip(sums, results, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(ir.Constant(_VECTOR, [0.0] * _LANES), before)
            phi.add_incoming(value, loop)
    builder.position_at_end(behind)
    return results


def _compare(builder: ir.IRBuilder, scores: list[ir.Value], relation: str, value: ir.Value) -> ir.Value:
    """Bit j of the 64 is set where score j has the relation to the float ``value``."""
    bits: ir.Value = _constant(0)
    other = _splat(builder, value)
    for j, vector in enumerate(scores):
        holds = builder.bitcast(builder.fcmp_ordered(relation, vector, other), ir.IntType(_LANES))
        bits = builder.or_(bits, builder.shl(builder.zext(holds, _INT64), _constant(j * _LANES)))
    return bits


def _load_vectors(builder: ir.IRBuilder, pointer: ir.Value) -> list[ir.Value]:
    vectors = builder.bitcast(pointer, _VECTOR.as_pointer())
    return [builder.load(builder.gep(vectors, [_constant(j)]), align=4) for j in range(_VECTORS)]


@extending.intrinsic
def _score_tile(typing: Any, users: Any, panel: Any, thresholds: Any, scores: Any, passing: Any) -> Any:
    """``scores[i, j] = <users[:, i], panel[:, j]>`` and bit j of ``passing[i]`` = ``scores[i, j] >= thresholds[i]``.

    Args:
        typing: numba's typing context.
        users: float32 [D, 6], C order, D >= 1.
        panel: float32 [D, 64], C order.
        thresholds: float32 [6].
        scores: float32 [6, 64] out, C order.
        passing: uint64 [6] out.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, arg) for kind, arg in zip(signature.args, args, strict=True)
        ]
        pointers = [array.data for array in arrays]
        dim = builder.extract_value(arrays[0].shape, 0)
        tile = _products(builder, pointers[0], pointers[1], dim)
        out = builder.bitcast(pointers[3], _VECTOR.as_pointer())
        for i, vectors in enumerate(tile):
            for j, vector in enumerate(vectors):
                builder.store(vector, builder.gep(out, [_constant(i * _VECTORS + j)]), align=4)
            threshold = builder.load(builder.gep(pointers[2], [_constant(i)]))
            builder.store(_compare(builder, vectors, ">=", threshold), builder.gep(pointers[4], [_constant(i)]))
        return context.get_dummy_value()

    return types.void(users, panel, thresholds, scores, passing), generate


@extending.intrinsic
def _tile_wins(typing: Any, scores: Any, score: Any) -> Any:
    """Twice how many of 64 contiguous float32 ``scores`` are below ``score``, plus how many are equal; int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        vectors = _load_vectors(builder, context.make_array(signature.args[0])(context, builder, args[0]).data)
        below = builder.ctpop(_compare(builder, vectors, "<", args[1]))
        return builder.add(below, builder.ctpop(_compare(builder, vectors, "<=", args[1])))

    return types.int64(scores, types.float32), generate


@extending.intrinsic
def _multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` of float32 scalars, rounded as in :func:`_score_tile`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.call(_fused(builder, _FLOAT, "f32"), args)

    return types.float32(types.float32, types.float32, types.float32), generate


@extending.intrinsic
def _lowest_bit(typing: Any, bits: Any) -> Any:
    """Index of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@extending.intrinsic
def _tile_between(typing: Any, scores: Any, low: Any, high: Any) -> Any:
    """Bit j of a uint64 is set where ``low <= scores[j] <= high``, for 64 contiguous float32 scores."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        vectors = _load_vectors(builder, context.make_array(signature.args[0])(context, builder, args[0]).data)
        return builder.and_(_compare(builder, vectors, ">=", args[1]), _compare(builder, vectors, "<=", args[2]))

    return types.uint64(scores, types.float32, types.float32), generate


# Type checkers would read the signature of the generator as that of the kernel.
score_tile: Any = _score_tile
tile_wins: Any = _tile_wins
multiply_add: Any = _multiply_add
lowest_bit: Any = _lowest_bit
tile_between: Any = _tile_between
