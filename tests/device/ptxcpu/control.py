"""Instructions that steer: branches, barriers, and what the lanes of a warp do together."""

from __future__ import annotations

from ptxcpu.forms import Form, identifier, translates
from ptxcpu.parser import Unsupported


@translates("bra")
def branch(form: Form) -> str:
    form.count(1)
    form.flag("uni")
    return f"goto L_{identifier(form.operands[0])};"


@translates("ret", "exit")
def leave(form: Form) -> str:
    form.flag("uni")
    return "return;"


@translates("trap")
def trap(form: Form) -> str:
    return 'fail("trap");'


@translates("bar", "barrier")
def barrier(form: Form) -> str:
    """The block's barrier 0 for all threads, its reductions, and ``bar.warp.sync``."""
    form.flag("cta", "aligned")
    if form.flag("warp"):
        form.one_of("sync")
        return f"warp_barrier({form.read(0, 'u32')});"
    if form.flag("sync"):
        if form.count(1) == 1 and form.operands[0] != "0":
            raise form.refuse("only barrier 0, of the whole block")
        return f"block_barrier({form.site});"
    form.one_of("red")
    kind = form.type("u32", "pred")
    operation = form.one_of("popc", "and", "or")
    if form.count(3) and form.operands[1] != "0":
        raise form.refuse("only barrier 0, of the whole block")
    count = f"block_count({form.read(2, 'pred')}, {form.site})"
    value = {"popc": count, "and": f"{count} == BLOCK.threads", "or": f"{count} > 0"}[operation]
    return form.write(kind, value)


@translates("membar", "fence")
def fence(form: Form) -> str:
    """Threads run one after the other, so that memory is always in order."""
    form.flag("cta", "gl", "gpu", "sys", "sc", "acq_rel")
    return ";"


@translates("nanosleep")
def sleep(form: Form) -> str:
    form.type("u32")
    return ";"


# ------------------------------------------------------------------------ warps


@translates("shfl")
def shuffle(form: Form) -> str:
    form.one_of("sync")
    form.type("b32")
    mode = {"up": "UP", "down": "DOWN", "bfly": "BUTTERFLY", "idx": "INDEX"}[
        form.one_of("up", "down", "bfly", "idx")
    ]
    form.count(5)
    value, by, clamp, members = (form.read(i, "u32") for i in (1, 2, 3, 4))
    first, _, inside = form.operands[0].partition("|")
    call = f"bool i_; u32 v_ = shuffle({mode}, {value}, {by}, {clamp}, {members}, i_); "
    told = form.write("pred", "i_", inside) if inside else ""
    return call + form.write("b32", "v_", first) + told


@translates("vote")
def vote(form: Form) -> str:
    form.one_of("sync")
    kind = form.type("pred", "b32")
    mode = form.one_of("all", "any", "uni", "ballot")
    members = form.read(2, "u32")
    ballot = f"u32 b_ = ballot({form.read(1, 'pred')}, {members}); "
    value = {
        "all": f"b_ == {members}",
        "any": "b_ != 0",
        "uni": f"b_ == 0 || b_ == {members}",
        "ballot": "b_",
    }[mode]
    return ballot + form.write(kind, value)


def unknown(form: Form) -> Unsupported:
    """The error for an opcode that no table has."""
    return form.refuse("this tool does not know the instruction")
