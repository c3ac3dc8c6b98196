"""Arrays and addresses in compiled loops."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


def _type_pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    """The address as a pointer to values of the type of ``kind``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind)(types.int64, kind), generate  # type: ignore[no-untyped-call]


_pointer: Any = intrinsic(_type_pointer)


@numba.njit(cache=True)
def address_of(array: Any) -> Any:
    """Address of an array's first element as int64."""
    return np.int64(array.ctypes.data)


@numba.njit(cache=True)
def array_at(address: Any, length: Any, kind: Any) -> Any:
    """The array [length] at an address, of the type of the scalar ``kind``; [0] where the address is 0."""
    return carray(_pointer(address, kind), (length if address else 0,))
