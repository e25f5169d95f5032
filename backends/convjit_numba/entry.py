"""The compiled function between Python and a kernel: it takes a tuple of arrays.

Importing this module imports numba; :mod:`convjit_numba.executable` does so only to compile it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.memory import call_code, load_int
from convjit_numba.vectorcode import I64, _int, _literals, _load, _store, reserve


def build(arrays: int, items: int, field: int) -> Callable[..., None]:
    """``entry(given)``, which calls what the first item of the tuple ``given`` says.

    Parameters
    ----------
    arrays : int
        How many follow it, each of which may be None.
    items, field : int
        Bytes from the beginning of a tuple to its items, and of an array to its ``data``.
    """

    def entry(given):
        head = load_int(load_int(given + items) + field)
        code, geometry, none = load_int(head), load_int(head + 8), load_int(head + 16)
        helpers = load_int(head + 24)
        numbers = (geometry, *_places(arrays, field, given + items + 8, none))
        if helpers == 0:
            call_code(code, (*numbers, 0))
        else:
            # convjit_numba.futex.build_call's function
            call, pool, wake = load_int(head + 32), load_int(head + 40), load_int(head + 48)
            call_code(call, (pool, helpers, wake, code, arrays + 1, _on_stack(numbers)))

    return entry


@intrinsic(prefer_literal=True)
def _places(typingctx: Any, arrays: Any, field: Any, given: Any, none: Any) -> Any:
    """Where the data of so many arrays are, whose addresses follow each other; 0 for None."""
    literals = _literals(arrays, field)
    if literals is None:
        return None
    count, offset = literals
    result = types.UniTuple(types.int64, count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = []
        for number in range(count):
            at = builder.add(arguments[2], _int(8 * number))
            array = _load(builder, at, I64, 8)
            missing = builder.icmp_signed("==", array, arguments[3])
            # Of None nothing is read.
            place = builder.select(missing, at, builder.add(array, _int(offset)))
            values.append(builder.select(missing, _int(0), _load(builder, place, I64, 8)))
        return context.make_tuple(builder, result, values)

    return result(arrays, field, types.int64, types.int64), codegen


@intrinsic
def _on_stack(typingctx: Any, numbers: Any) -> Any:
    """The address of a copy of a tuple of int64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = cgutils.unpack_tuple(builder, arguments[0])
        start = reserve(builder, 8 * len(values))
        for number, value in enumerate(values):
            _store(builder, value, builder.add(start, _int(8 * number)), 8)
        return start

    return types.int64(numbers), codegen
