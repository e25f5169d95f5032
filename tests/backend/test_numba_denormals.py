"""Kernels multiply with nothing that is not theirs: old memory may hold subnormal numbers.

Lanes that reach beyond a tile's numbers are computed and dropped.  If what lies there happens to be
subnormal, each product with it may take a hundred times as long, so kernels put zeros there.  The
processor says whether it met any: a sticky bit of MXCSR.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.precision import numpy_dtype
from convjit.spec import ConvSpec

SPECS = [
    "conv_f32_NCHW_n1c3k5g1_i13x13_w3x3_p1",
    "conv_f32_NHWC_n1c3k5g1_i13x13_w3x3_p1",
    "conv_f32_NCHW_n1c3k7g1_i23x23_w5x5_s2x2_p2",
    "conv_f64_NCHW_n2c20k36g4_i13x13_w1x1_s2x2",
    "conv_f32_NCHW_n1c5k5g5_i13x13_w3x3_p1",
    "conv_f32_NHWC_n1c5k5g5_i13x13_w3x3_p1",
    "conv_f32_NCL_n1c1k1g1_i300_w9",
    "conv_f32_NCDHW_n1c5k5g1_i7x7x7_w3x3x3_p1",
    "wgrad_f32_NCHW_n1c6k5g1_i13x13_w3x3_p1",
    "wgrad_f32_NHWC_n1c5k5g5_i13x13_w3x3_p1",
]  # fmt: skip
SUBNORMAL = 12345  # as a float32 or float64 of these bits
MET = 1 << 1  # MXCSR's denormal flag


@pytest.fixture(scope="module")
def status() -> tuple[Callable[[], int], Callable[[], None]]:
    """What reads MXCSR's flags, and what clears them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("MXCSR is x86's")
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def control(builder: Any, name: str, place: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
        builder.call(function, [builder.bitcast(place, ir.IntType(8).as_pointer())])

    @intrinsic
    def read(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = cgutils.alloca_once(builder, ir.IntType(32))
            control(builder, "stmxcsr", place)
            return builder.load(place)

        return types.int32(), codegen

    @intrinsic
    def write(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(arguments[0], place)
            control(builder, "ldmxcsr", place)
            return context.get_dummy_value()

        return types.void(types.int32), codegen

    @njit
    def flags() -> int:
        return read() & 63

    @njit
    def clear() -> None:
        write(np.int32(read() & ~63))

    return flags, clear


def test_the_flag_tells_of_a_subnormal_number(status: Any) -> None:
    flags, clear = status
    clear()
    assert not flags() & MET
    small = np.full(64, SUBNORMAL, np.uint32).view(np.float32)
    small * np.float32(1.5)
    assert flags() & MET
    clear()
    assert not flags() & MET


@pytest.mark.parametrize("text", SPECS)
def test_no_kernel_multiplies_with_what_memory_held_before(status: Any, text: str) -> None:
    flags, clear = status
    spec, backend = ConvSpec.parse(text), registry.get("numba")
    dtype = numpy_dtype(spec.dtype)
    with convjit.use(num_threads=1):
        target = backend.target()
        for solver in backend.solvers():
            if solver.refuse(spec, target) is not None:
                continue
            executable = solver.plan(spec, target, next(iter(solver.configs(spec, target))))
            lhs = np.ones(spec.lhs_shape, dtype)
            packed = executable.pack(np.ones(spec.rhs_shape, dtype))
            out = np.empty(spec.result_shape, dtype)
            # A byte more for what does not divide by a number's size.
            count = executable.workspace // dtype.itemsize + 1
            kind = np.uint32 if dtype.itemsize == 4 else np.uint64
            workspace = np.full(count, SUBNORMAL, kind).view(np.uint8)
            clear()
            executable.run(lhs, packed, None, out, workspace[: executable.workspace])
            assert not flags() & MET, solver.id
