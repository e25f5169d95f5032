"""No solver of ours reads or writes beside its arrays: pages that must not be touched lie there.

The quick cases of the conformance suite, and some of odd sizes, run with every array at the end of
its last page and again at the start of its first: operands (which may not be written either), the
packed form and whatever else packing allocates, bias, result and workspace.  Canaries, which other
tests lay beside arrays, do not notice reads.

A solver has every third of the odd sizes that it takes, for most need kernels of their own, and
all of them by ``-m exhaustive``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from convjit_numba import NumbaBackend

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect by its Linux numbers"),
]

SOLVERS = [solver.id for solver in NumbaBackend().solvers()]

# One more or less than vectors, tiles and blocks; few and many channels; borders wider than images.
ODD = [
    "conv_f32_NCHW_n2c7k9g1_i13x17_w3x3_p1_bias_act=relu",
    "conv_f64_NCHW_n1c19k37g1_i9x31_w3x3_bias",
    "conv_f32_NCHW_n1c5k3g1_i15x33_w5x5_p2",
    "conv_f32_NCHW_n1c3k17g1_i31x33_w7x7_s2_p3",
    "conv_f64_NCHW_n1c130k67g1_i13x9_w1x1_bias",
    "conv_f32_NCHW_n3c8k12g1_i15x14_w1x1_s2",
    "conv_f32_NCHW_n1c6k10g2_i13x17_w3x2_s2x3_p1x0.2_d2x1",
    "conv_f64_NCHW_n1c9k9g9_i19x21_w3x3_p1_bias",
    "conv_f32_NCHW_n1c3k9g3_i14x15_w5x5_s2_p2",
    "conv_f32_NCHW_n1c1k1g1_i33x65_w11x11_p5",
    "conv_f64_NCHW_n1c1k1g1_i47x61_w13x7",
    "conv_f32_NCHW_n2c1k1g1_i5x5_w3x3_p7",
    "conv_f32_NHWC_n2c7k9g1_i13x17_w3x3_p1_bias_act=relu",
    "conv_f64_NHWC_n1c19k37g1_i9x31_w3x3",
    "conv_f32_NHWC_n1c5k3g1_i15x33_w5x5_p2",
    "conv_f32_NHWC_n2c3k17g1_i31x33_w7x7_s2_p3",
    "conv_f64_NHWC_n1c65k33g1_i7x5_w1x1_bias",
    "conv_f32_NHWC_n1c6k10g2_i13x17_w3x2_s2x3_p1x0.2_d2x1",
    "conv_f32_NHWC_n1c17k17g17_i19x21_w3x3_p1_bias",
    "conv_f64_NHWC_n1c5k15g5_i14x15_w5x5_s2_p2",
    "conv_f32_NHWC_n1c33k33g33_i9x11_w7x7_p3_d2",
    "conv_f32_NCL_n1c1k1g1_i1001_w31",
    "conv_f64_NCL_n2c3k5g1_i333_w9_p8.0_d4",
    "conv_f32_NLC_n1c17k17g17_i101_w5_p2",
    "conv_f32_NCDHW_n1c5k9g1_i5x7x9_w3x3x3_p1",
    "conv_f64_NDHWC_n1c3k5g1_i5x7x9_w3x2x3_s1x2x1_p1",
    "convt_f32_NCHW_n2c9k7g1_i13x17_w4x4_s2_p1_bias",
    "convt_f32_NHWC_n2c19k5g1_i9x31_w3x3_s2_p1",
    "convt_f64_NCL_n3c9k17g1_i301_w9_s3_p4",
    # pairs of channels, the last without another; casts of both operands and the result
    "conv_i8_NCHW_n2c19k21g1_i13x37_w3x3_p1",
    "conv_u8_NHWC_n1c5k7g1_i24x16_w3x3_s2_p1",
    "conv_f16_NCHW_n1c6k6g1_i15x17_w3x3_p1",
    "conv_bf16_NCL_n1c7k9g1_i301_w3_p1",
    "wgrad_f32_NCHW_n2c7k9g1_i13x17_w3x3_p1",
    "wgrad_f32_NHWC_n2c19k5g1_i9x31_w3x3_s2_p1",
    "wgrad_f64_NCL_n1c17k9g1_i301_w9_p4",
    "wgrad_f32_NHWC_n2c40k7g1_i13x17_w1x1",  # x in place, up to its last lane
    "wgrad_f32_NHWC_n1c32k9g1_i13x17_w1x1_s2_p1",
    "wgrad_f32_NCHW_n2c5k10g5_i13x37_w3x3_p1",
    "wgrad_f64_NCHW_n1c4k4g4_i14x15_w5x9_s2_p2x4",
    "igrad_f32_NCHW_n1c7k9g1_i14x16_w3x3_s2_p1",
    "convt_f32_NHWC_n1c5k7g1_i14x16_w4x4_s2_p1",
]

SCRIPT = textwrap.dedent(
    """
    import warnings
    warnings.simplefilter("error")
    import ctypes, json, mmap, sys
    from contextlib import contextmanager
    from math import prod
    import numpy as np
    from convjit import precision
    from convjit.algorithms.policies import policy_refusal
    from convjit.dispatch import error_bound
    from convjit.lowering import copy_of, lower
    from convjit.precision import Policy
    from convjit.spec import ConvSpec
    from convjit.spi import Refusal
    from convjit.testing.cases import QUICK, Case
    from convjit.testing.check import measured_error, poison, reference
    from convjit_numba import NumbaBackend

    PAGE = mmap.PAGESIZE
    NONE, READ = 0, 1
    libc = ctypes.CDLL(None, use_errno=True)
    numpy_empty = np.empty

    def protect(address, size, how):
        done = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), how)
        assert done == 0, ctypes.get_errno()

    class Memory:
        # Bytes between two pages that cannot be read; at the end but for what they are aligned to.

        def __init__(self, size, at_end, alignment):
            self.pages = -(-size // PAGE)
            self.area = mmap.mmap(-1, (self.pages + 2) * PAGE)
            self.first = ctypes.addressof(ctypes.c_char.from_buffer(self.area)) + PAGE
            protect(self.first - PAGE, PAGE, NONE)
            protect(self.first + self.pages * PAGE, PAGE, NONE)
            start = PAGE
            if at_end:
                start += (self.pages * PAGE - size) // alignment * alignment
            self.bytes = np.frombuffer(self.area, np.uint8)[start : start + size]

        def read_only(self):
            if self.pages:
                protect(self.first, self.pages * PAGE, READ)

    def fenced(shape, dtype, at_end, alignment=1):
        dtype = np.dtype(dtype)
        memory = Memory(prod(shape) * dtype.itemsize, at_end, alignment)
        return memory.bytes.view(dtype).reshape(shape), memory

    def operand(values, at_end):
        # A copy that cannot be written.  What is not contiguous begins and ends with its samples.
        if values.flags.c_contiguous:
            array, memory = fenced(values.shape, values.dtype, at_end)
        else:
            *outer, last = values.shape
            spread, memory = fenced((*outer, 2 * last - 1), values.dtype, at_end)
            array = spread[..., ::-2]
        array[...] = values
        memory.read_only()
        return array

    @contextmanager
    def allocating(at_end):
        # What NumPy allocates for a packer: aligned to 16 bytes, as its own memory is.
        def empty(shape, dtype=float, **keywords):
            shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
            return fenced(tuple(map(int, shape)), dtype, at_end, 16)[0]

        def zeros(shape, dtype=float, **keywords):
            return empty(shape, dtype)  # new pages are zero

        before = np.empty, np.zeros
        np.empty, np.zeros = empty, zeros
        try:
            yield
        finally:
            np.empty, np.zeros = before

    backend = NumbaBackend()
    target = backend.target()
    solver = next(s for s in backend.solvers() if s.id == sys.argv[1])
    widest = Policy(precision="fast", nonfinite="spread")
    cases = [*(c for c in QUICK if not c.spec.is_empty),
             *(Case("odd", ConvSpec.parse(text)) for text in json.loads(sys.argv[2]))]
    step = int(sys.argv[3])
    ran = odd = 0
    for case in cases:
        spec = case.spec
        lowered = lower(solver, spec, target)
        if isinstance(lowered, Refusal):
            continue
        bound = error_bound(spec, lowered.spec, lowered.work)
        numerics, inner = lowered.work.numerics, lowered.spec
        if policy_refusal(spec, numerics, widest, inner=inner, bound=bound):
            continue
        odd += case.group == "odd"
        if case.group == "odd" and odd % step:
            continue
        lhs, rhs, bias = case.operands()
        expected, sizes = reference(case)
        executable = lowered.plan(
            target, next(iter(solver.configs(lowered.spec, target)), ()), copy_of(backend)
        )
        for at_end in (True, False):
            print(case, "at the end" if at_end else "at the start", flush=True)
            given = operand(rhs, at_end)
            with allocating(at_end):
                packed = executable.pack(given)
            x = operand(lhs, at_end)
            b = None if bias is None else operand(bias, at_end)
            dtype = precision.numpy_dtype(spec.result_dtype)
            out = poison(fenced(spec.result_shape, dtype, at_end)[0])
            workspace = None
            if executable.workspace:
                workspace = fenced((executable.workspace,), np.uint8, at_end, 64)[0]
                workspace[...] = 0xFF
            executable.run(x, packed, b, out, workspace)
            error = measured_error(spec, out, expected, sizes)
            assert error <= bound, (error, bound)
            ran += 1
    print(ran)
    """
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=1000,  # it compiles what the solver's cases ask for
    )


@pytest.mark.timeout(1060)
@pytest.mark.parametrize(
    "step",
    [pytest.param(3, id="third"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_touches_nothing_beside_its_arrays(solver: str, step: int) -> None:
    done = run(SCRIPT, solver, json.dumps(ODD), str(step))
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"ended with {done.returncode} in {last}\n{done.stderr[-4000:]}"
    assert int(last[0]) >= 8


@pytest.mark.parametrize(
    ("touch", "survives"),
    [
        ("array[:] = 1", True),
        ("libc.memset(address, 0, 300)", True),
        ("libc.memset(address + 300, 0, 1)", False),
        ("libc.memcmp(address, address + 1, 300)", False),
        ("libc.memset(address - at_start - 1, 0, 1)", False),
        ("memory.read_only(); libc.memcmp(address, address, 300)", True),
        ("memory.read_only(); libc.memset(address, 0, 1)", False),
    ],
)
def test_pages_catch_what_they_are_there_for(touch: str, survives: bool) -> None:
    body = SCRIPT.partition("\nbackend = ")[0] + textwrap.dedent(
        f"""
        array, memory = fenced((300,), np.uint8, True)
        array[:] = 0
        libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        libc.memcmp.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        address, at_start = array.ctypes.data, PAGE - 300
        {touch}
        """
    )
    assert (run(body).returncode == 0) is survives
