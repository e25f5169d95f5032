"""The pool of helpers in compiled code: one call wakes them, runs the kernel and settles.

Importing this module imports numba; :mod:`convjit_numba.threads` does so only to compile the two
functions, whose object code is kept as a kernel's.

A helper is a thread that never leaves :func:`build_serve`.  It owns a *box*, through which callers
hand it one kernel call at a time.  Between calls it looks at the box for some tens of microseconds
and then sleeps in a futex (Franke, Russell and Kirkwood 2002, "Fuss, futexes and furwocks"; the
waiting protocol is Drepper's, "Futexes are tricky", 2005), so that calls in close succession cost
a microsecond, and idle helpers nothing.

States of a box, and who changes them::

    SPINNING -> PARKED               the helper, when nothing came for a while
    SPINNING, PARKED -> CLAIMED      a caller, by compare-and-swap: no other caller interferes
    CLAIMED -> POSTED                that caller, after the job's address; it wakes a parked helper
    POSTED -> RUNNING                the helper
    POSTED -> SPINNING               that caller, who is done before the helper began: cancelled
    RUNNING -> SPINNING              the helper, after it counted the job as finished

A posted state carries a ticket, the box's count of posts: when a caller comes to cancel, the helper
may have finished its job and hold another caller's, which is not that caller's to cancel.

A helper that was last on the processor that its caller is on does not run beside it: the system
tends to wake a thread where its waker is, and may leave both there for milliseconds although
another processor is idle (on virtual machines whose processors are told to share no cache, it
does nearly always).  The caller then forbids it that processor before waking it.

A caller waits for nobody but a helper that runs its job, by the box's count of finished jobs.  That
count lives in the box, which is never freed, so that a helper touches nothing of a caller's once it
has counted: the job itself is on the caller's stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.memory import atomic_add, copy_bytes, load_int, store_int, zero_bytes
from convjit_numba.threads import (
    ALLOWED,
    BOX_BYTES,
    CONTROL_BYTES,
    FIRST_BOX,
    HELPERS,
    LINE,
    MASK_BYTES,
    MISSED,
    MISSES,
    MOST_ARGUMENTS,
    MOST_HELPERS,
    MOST_RANGES,
    RANGES,
    SPINS,
    SYSCALLS,
    TAKEN,
)
from convjit_numba.vectorcode import I64, OPTIONS, POINTER, reserve

SPINNING, PARKED, CLAIMED, RUNNING, POSTED = range(5)
POST = 8  # a ticket's unit: what is posted as number n has the state POSTED + n * POST
# Offsets in a box, on lines of their own: what callers write, what the helper writes (its thread
# and the processor it was last on), and a set of processors.
STATE, JOB, TICKET = 0, 8, 16
FINISHED, AWAITED, THREAD, PROCESSOR, MASK = 64, 72, 80, 88, 128
# Offsets in a job, on the caller's stack, which begins with the control block of the kernel's call.
CODE, COUNT, ARGUMENTS = CONTROL_BYTES, CONTROL_BYTES + 8, CONTROL_BYTES + 16
CLAIMS = CONTROL_BYTES + 24  # each a box, its count of finished jobs before this one, its state
CLAIM_BYTES = 24
JOB_BYTES = CLAIMS + CLAIM_BYTES * MOST_HELPERS
# Operations of the futex system call (linux/futex.h), with FUTEX_PRIVATE_FLAG.
WAIT, WAKE = 128, 129


def build_serve(machine: str) -> Callable[..., None]:
    """The life of a helper: ``serve(pool, box)`` does not return."""
    relax, futex = _relax(machine), system_call(SYSCALLS[machine].futex)
    gettid = system_call(SYSCALLS[machine].gettid)

    def serve(pool, box):
        store_int(box + THREAD, gettid(0, 0, 0))
        store_int(box + PROCESSOR, processor())
        patience = 0
        while True:
            state = load_atomic(box + STATE)
            if state >= POSTED and swap_if(box + STATE, state, RUNNING):
                call_kernel(load_int(box + JOB))
                atomic_add(box + FINISHED, 1)
                if swap(box + AWAITED, 0) != 0:
                    futex(box + FINISHED, WAKE, 1)
                store_int(box + PROCESSOR, processor())
                swap(box + STATE, SPINNING)
                patience = 0
            elif state == PARKED:
                # Returns at once if the state has changed; signals wake it too.
                futex(box + STATE, WAIT, PARKED)
                store_int(box + PROCESSOR, processor())
                patience = 0
            elif state == SPINNING and patience >= load_int(pool + SPINS):
                swap_if(box + STATE, SPINNING, PARKED)
            else:
                patience += 1
                relax()

    return serve


def build_call(machine: str) -> Callable[..., None]:
    """A kernel call: ``call(pool, helpers, wake, code, count, arguments)``.

    At most ``helpers`` idle helpers join; those that sleep only if ``wake`` is not 0 or this is one
    in ``MISSES`` calls that met them asleep.  ``code`` is the kernel's address, ``arguments`` that
    of ``count`` int64, after which the kernel is given the control block.
    """
    relax, futex = _relax(machine), system_call(SYSCALLS[machine].futex)
    setaffinity = system_call(SYSCALLS[machine].sched_setaffinity)

    @njit(**OPTIONS)
    def send_away(pool, box, here):
        """Forbid a claimed helper the processor ``here``; on the only one it stays."""
        copy_bytes(box + MASK, pool + ALLOWED, MASK_BYTES)
        word = box + MASK + here // 64 * 8
        store_int(word, load_int(word) & ~(1 << (here % 64)))
        setaffinity(load_int(box + THREAD), MASK_BYTES, box + MASK)
        store_int(box + PROCESSOR, -1)

    @njit(**OPTIONS)
    def post(pool, box, state, job, claims):
        here = processor()
        # A helper that has not begun has no thread yet: 0 would mean this thread, the caller's own.
        begun = load_int(box + THREAD) != 0
        if begun and here == load_int(box + PROCESSOR) and here < 8 * MASK_BYTES:
            send_away(pool, box, here)
        posted = load_int(box + TICKET) + POST
        store_int(box + TICKET, posted)
        claim = job + CLAIMS + CLAIM_BYTES * claims
        store_int(claim, box)
        store_int(claim + 8, load_atomic(box + FINISHED))
        store_int(claim + 16, posted + POSTED)
        # Claims come in the order of the boxes, so that mostly a helper has the same range again.
        store_int(box + JOB, job + min(claims + 1, MOST_RANGES - 1))
        swap(box + STATE, posted + POSTED)
        if state == PARKED:
            futex(box + STATE, WAKE, 1)

    @njit(**OPTIONS)
    def wait(pool, box, before):
        patience = 0
        while load_atomic(box + FINISHED) == before:
            if patience < load_int(pool + SPINS):
                patience += 1
                relax()
            else:
                swap(box + AWAITED, 1)
                futex(box + FINISHED, WAIT, before)

    def call(pool, helpers, wake, code, count, arguments):
        job = stack_block()
        ranges = min(helpers + 1, MOST_RANGES)
        zero_bytes(job, TAKEN + LINE * ranges)
        store_int(job + RANGES, ranges)
        store_int(job + CODE, code)
        store_int(job + COUNT, count)
        store_int(job + ARGUMENTS, arguments)
        claims = 0
        box = pool + FIRST_BOX
        end = box + BOX_BYTES * load_atomic(pool + HELPERS)
        while box < end and claims < helpers:
            state = load_atomic(box + STATE)
            if state == PARKED and wake == 0:
                # Of concurrent callers one may miscount, which only moves the waking.
                missed = load_int(pool + MISSED) + 1
                wake = missed >= MISSES
                store_int(pool + MISSED, 0 if wake else missed)
            idle = state == SPINNING or (state == PARKED and wake != 0)
            if idle and swap_if(box + STATE, state, CLAIMED):
                post(pool, box, state, job, claims)
                claims += 1
            box += BOX_BYTES
        call_kernel(job)
        for i in range(claims):
            claim = job + CLAIMS + CLAIM_BYTES * i
            box = load_int(claim)
            if not swap_if(box + STATE, load_int(claim + 16), SPINNING):
                wait(pool, box, load_int(claim + 8))

    return call


# -------------------------------------------------------------------- intrinsics


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, POINTER)


@intrinsic
def load_atomic(typingctx: Any, address: Any) -> Any:
    """The int64 at an address that other threads write; later reads happen after it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8, typ=I64)

    return types.int64(types.int64), codegen


@intrinsic
def swap(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64 for other threads to see; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def swap_if(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    """Store an int64 if the one there is ``expected``; whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0])
        pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def stack_block(typingctx: Any) -> Any:
    """Address of ``JOB_BYTES`` on the stack, aligned to a cache line."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = reserve(builder, JOB_BYTES + 64)
        return builder.and_(builder.add(start, ir.Constant(I64, 63)), ir.Constant(I64, -64))

    return types.int64(), codegen


@intrinsic
def call_kernel(typingctx: Any, job: Any) -> Any:
    """Call a job's kernel with its arguments and its control block.

    ``job`` is its address and the number of the thread's range, which the kernel is given too.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (control,) = arguments
        job = builder.and_(control, ir.Constant(I64, -LINE))

        def at(place: Any, offset: int) -> Any:
            return builder.load(
                _pointer(builder, builder.add(place, ir.Constant(I64, offset))), typ=I64
            )

        code, count, numbers = at(job, CODE), at(job, COUNT), at(job, ARGUMENTS)
        after = builder.append_basic_block("called")
        choice = builder.switch(count, after)
        for n in range(MOST_ARGUMENTS + 1):
            block = builder.append_basic_block(f"call_{n}")
            choice.add_case(ir.Constant(I64, n), block)
            builder.position_at_end(block)
            kind = ir.FunctionType(ir.VoidType(), [I64] * (n + 1))
            values = [at(numbers, 8 * i) for i in range(n)]
            builder.call(builder.inttoptr(code, kind.as_pointer()), [*values, control])
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def processor(typingctx: Any) -> Any:
    """The processor that this thread is on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        call = cgutils.get_or_insert_function(builder.module, kind, "sched_getcpu")
        return builder.sext(builder.call(call, []), I64)

    return types.int64(), codegen


def system_call(number: int) -> Any:
    """A system call of three arguments; the result is negative for an error, which is no matter."""

    @intrinsic
    def call(typingctx: Any, first: Any, second: Any, third: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(I64, [I64], var_arg=True)
            function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
            zero = ir.Constant(I64, 0)  # of a futex: no time limit
            return builder.call(function, [ir.Constant(I64, number), *arguments, zero, zero, zero])

        return types.int64(types.int64, types.int64, types.int64), codegen

    return call


def _relax(machine: str) -> Any:
    """What a thread does while it looks at memory in a loop: let its twin on the core go ahead."""

    @intrinsic
    def relax(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            module, nothing = builder.module, ir.VoidType()
            if machine == "x86_64":
                pause = ir.FunctionType(nothing, [])
                name = "llvm.x86.sse2.pause"
                builder.call(cgutils.get_or_insert_function(module, pause, name), [])
            elif machine == "aarch64":
                hint, one = ir.FunctionType(nothing, [ir.IntType(32)]), ir.IntType(32)(1)
                name = "llvm.aarch64.hint"  # 1: yield
                builder.call(cgutils.get_or_insert_function(module, hint, name), [one])
            return context.get_dummy_value()

        return types.void(), codegen

    return relax
