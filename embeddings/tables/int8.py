"""Rows of int8 whose last byte is an exponent that their columns share.

Column c of row w is ``w[c] * 2^(e - 127)`` with ``w[c]`` from -127 to 127 and e the last byte, unsigned: the format of
the OCP Microscaling specification (MXINT8, 2023) with a row for a block. e is the smallest that holds the row, and 255
stands for a row of which a number is none or infinite.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from embeddings.tables.addresses import array_at
from embeddings.tables.bfloat16 import GOLDEN, splat

_INT8, _INT32, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_MOST, _FRACTION, _UP = 127, 23, (1 << 23) - 1  # of int8; bits of a float32's fraction; what rounds an exponent up
_NONE = 255  # exponent of a row that is no numbers; that of a finite float32 [D] is 248 at most
_SIGNLESS = 0x7FFFFFFF


def int8_values(builder: Any, address: Any, width: int, end: Any) -> Any:
    """``width`` columns of a row as a float32 vector; ``end`` is the address of its exponent."""
    columns = builder.load(builder.inttoptr(address, ir.VectorType(_INT8, width).as_pointer()), align=1)
    exponent = builder.zext(builder.load(builder.inttoptr(end, _INT8.as_pointer()), align=1), _INT32)
    scale = builder.bitcast(builder.shl(exponent, _INT32(_FRACTION)), _FLOAT)
    vector = ir.VectorType(_FLOAT, width)
    return builder.fmul(builder.sitofp(columns, vector), splat(builder, scale, vector))


@numba.njit(cache=True)
def add_to_int8(dim: Any, out: Any, scale: Any, values: Any, seed: Any) -> None:
    """Add float32 ``scale`` times float32 [dim] at the address ``values`` to the int8 row [dim + 1] at ``out``.

    The exponent is found anew, and each sum is rounded up or down at random, so that it is right in the mean
    (stochastic rounding, Gupta et al. 2015). int64 ``seed`` decides the draw.
    """
    columns, end = array_at(out, dim, np.int8(0)), array_at(out + dim, 1, np.uint8(0))
    step, before = array_at(values, dim, np.float32(0)), _power(end[0])
    top = np.uint32(0)
    for c in range(dim):
        bits = np.float32(np.float32(columns[c]) * before + scale * step[c]).view(np.uint32)
        top = max(top, np.uint32(bits & np.uint32(_SIGNLESS)))
    unit = np.uint32(top).view(np.float32) / np.float32(_MOST)
    exponent: Any = max(np.int64(np.float32(unit).view(np.uint32)) + _UP >> _FRACTION, 1)
    if exponent >= _NONE:
        columns[:] = 0
        end[0] = _NONE
        return
    inverse = _power(2 * _MOST - exponent)
    for c in range(dim):
        noise = np.uint32(np.uint32(seed) + np.uint32(np.uint32(c) * np.uint32(GOLDEN)))  # Wellons' lowbias32
        noise = np.uint32(_mixed(noise, 16) * np.uint32(0x7FEB352D))
        noise = np.uint32(_mixed(noise, 15) * np.uint32(0x846CA68B))
        share = np.float32(np.int32(_mixed(noise, 16) >> np.uint32(16))) * np.float32(2**-16)
        rounded = np.floor((np.float32(columns[c]) * before + scale * step[c]) * inverse + share)
        columns[c] = np.int8(min(max(rounded, np.float32(-_MOST)), np.float32(_MOST)))
    end[0] = exponent


@numba.njit(cache=True)
def _mixed(bits: Any, shift: int) -> Any:
    """32 bits mixed with themselves; every step is told to stay in 32, so that the loop around is of vectors."""
    return np.uint32(bits ^ np.uint32(bits >> np.uint32(shift)))


@numba.njit(cache=True)
def _power(exponent: Any) -> Any:
    """``2^(exponent - 127)`` as float32; infinite at 255."""
    return np.uint32(np.uint32(exponent) << np.uint32(_FRACTION)).view(np.float32)


def to_int8(rows: Tensor) -> Tensor:
    """int8 [n, D + 1]: the nearest rows of this format to float32 [n, D]."""
    top = (rows.abs().amax(dim=1) / _MOST).view(torch.int32).to(torch.int64)
    exponents = ((top + _UP) >> _FRACTION).clamp(1, _NONE)
    columns = (rows / _scales(exponents)).round().nan_to_num(0.0, 0.0, 0.0)
    return torch.cat([columns.to(torch.int8), exponents[:, None].to(torch.uint8).view(torch.int8)], dim=1)


def from_int8(stored: Tensor) -> Tensor:
    """Float32 [n, D], what int8 [n, D + 1] of :func:`to_int8` stands for."""
    return stored[:, :-1] * _scales(stored[:, -1].contiguous().view(torch.uint8))


def _scales(exponents: Tensor) -> Tensor:
    return (exponents.to(torch.int32) << _FRACTION).view(torch.float32)[:, None]
