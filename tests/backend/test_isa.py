"""Code for other processors than this one: AVX2 and baseline x86-64 run here, aarch64 is compiled.

Each instruction set has a process and a kernel cache of its own, as on a machine that has no more.
The assembly of every kernel that was compiled there is looked through for registers that such a
machine lacks, and its object code for symbols that would have to come from elsewhere.

Compiling is what takes long, so that each process is asked for a few kernels of each solver; for
more of them by ``-m exhaustive``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import convjit_numba
from convjit_numba import NumbaBackend, cache, targets

SOLVERS = [solver.id for solver in NumbaBackend().solvers()]
TIMEOUT = 1500.0  # seconds for a process, which takes some 250 for MORE
# Kernels that a process compiles: of each solver, or for aarch64 of each solver's kinds.
FEW, MORE = 2, 5
KERNELS = [pytest.param(FEW, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.exhaustive)]
OF_A_KIND = [
    pytest.param(1, id="few"),
    pytest.param(sys.maxsize, id="all", marks=pytest.mark.exhaustive),
]

# As for numba: name of the processor, its features.
PROCESSORS = {
    "avx2": (
        "haswell",
        "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,"
        "+movbe,-avx512f,-avx512vl,-avx512dq,-avx512bw,-avx512cd",
    ),
    "sse2": ("x86-64", "+sse2,-sse3,-ssse3,-sse4.1,-sse4.2,-avx,-avx2,-fma,-avx512f"),
}
AARCH64 = ("aarch64-unknown-linux-gnu", "cortex-a76", "+neon")

# Operands and instructions, as LLVM prints them for GNU's assembler, that a processor lacks.
UPPER = r"%[xyz]mm(?:1[6-9]|2\d|3[01])\b"
FOREIGN = {
    "avx2": re.compile(rf"%zmm\d+|{UPPER}|%k[0-7]\b"),
    "sse2": re.compile(rf"%[yz]mm\d+|{UPPER}|%k[0-7]\b|^\s+v[a-z]\w+", re.MULTILINE),
}


def foreign(assembly: str, isa: str) -> set[str]:
    """Registers and instructions of an assembly text that an instruction set does not have."""
    return {found.strip() for found in FOREIGN[isa].findall(assembly)}


def undefined(code: bytes) -> set[str]:
    """Symbols that an ELF object of 64 bits takes from elsewhere."""
    from llvmlite import binding as llvm

    # The object reads the bytes where they lie, so each table is copied while it is there.
    sections = {s.name(): bytes(s.data()) for s in llvm.ObjectFileRef.from_data(code).sections()}
    symbols, names = sections[b".symtab"], sections[b".strtab"]
    found = set()
    for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", symbols):
        if section == 0 and name != 0:
            found.add(names[name : names.index(b"\0", name)].decode())
    return found


# -------------------------------------------------------------------- in processes of their own

# Every object that is emitted is kept beside its assembly, as OUT/<name>.o and .s.
RECORD = """
import json, re, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from llvmlite import binding as llvm

emitted = []
emit_object = llvm.TargetMachine.emit_object

def emit_and_keep(self, module):
    assembly = self.emit_assembly(module.clone())
    emitted.append((assembly, emit_object(self, module)))
    return emitted[-1][1]

llvm.TargetMachine.emit_object = emit_and_keep
out = Path(sys.argv[1])

def keep(names):
    assert len(names) == len(emitted), (len(names), len(emitted))  # none needs numba's run time
    for name, (assembly, code) in zip(names, emitted, strict=True):
        (out / f"{name}.s").write_text(assembly)
        (out / f"{name}.o").write_bytes(code)
"""

# The quick cases of the conformance suite, in any order, on every solver by whatever lowering
# reaches it, until it has asked for this many kernels: compiling one takes a second, and kernels of
# a solver differ in the size of their tile.  Codelets of Winograd's transforms are quickly made.
CONFORM = RECORD + textwrap.dedent(
    """
    import random
    from convjit.testing.cases import QUICK
    from convjit.testing.check import check
    from convjit_numba import NumbaBackend, cache, targets

    def tiles():
        return sum(not re.match(r"winograd[.](data|output|taps)", n) for n in cache.compiled)

    passed, wrong = {}, []
    for solver in NumbaBackend().solvers():
        passed[solver.id] = 0
        before = tiles()
        for case in random.Random(solver.id).sample(QUICK, len(QUICK)):
            if tiles() >= before + int(sys.argv[2]):
                break
            outcome = check(case, "numba", algorithm=solver.id,
                            choice={"precision": "fast", "nonfinite": "spread"})
            passed[solver.id] += outcome.passed
            if outcome.complaint:
                wrong.append(str(outcome))
    keep(cache.compiled)
    from numba.core.registry import cpu_target
    numbas = cpu_target.target_context.codegen().magic_tuple()
    print(json.dumps({"isa": targets.codegen().isa, "passed": passed, "wrong": wrong,
                      "numbas": tuple(targets.codegen()) == tuple(numbas)}))
    """
)

# What solvers plan with for a machine with NEON, generated for it: of the kernels that a solver has
# from a module, as many of each dtype as said whose names differ in numbers alone (sizes of tiles);
# by whom each was asked for, and what became of it.
CROSS = RECORD + textwrap.dedent(
    """
    import ctypes, itertools, platform
    from collections import Counter
    from dataclasses import replace
    import numpy as np
    from convjit.spec import ConvSpec
    from convjit import precision
    from convjit_numba import NumbaBackend, cache, casting, copying, frontend, peak, targets
    from convjit_numba import threads

    triple, cpu, features, specs, most = json.loads(sys.argv[2])
    backend = NumbaBackend()
    solvers = backend.solvers()
    targets.codegen = lambda: targets.CodeGen(triple, cpu, features)
    platform.machine = lambda: triple.partition("-")[0]
    target = replace(backend.target(), features={"isa": targets.codegen().isa})
    assert target.features["isa"] == "neon"

    wanted = {}
    asking = ""

    def note(name, arguments, build):
        caller = sys._getframe(1).f_globals["__name__"]
        wanted.setdefault((name, arguments), (build, asking, caller))
        kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(lambda *_: None)
        kernel.address = 0
        return kernel

    run, function = threads.run, cache.function
    threads.run, cache.function = (lambda *_: None), note
    for solver in solvers:
        asking = solver.id
        for spec in map(ConvSpec.parse, specs):
            if solver.refuse(spec, target) is None:
                executable = solver.plan(spec, target, ())
                executable.pack(np.zeros(spec.rhs_shape, spec.dtype))
    asking = "numba.separable"
    for dtype in targets.SHORT.values():
        depth, point = (ConvSpec.parse(f"conv_{dtype}_NHWC_n1c32{rest}") for rest in
                        ("k32g32_i28x28_w3x3_p1", "k48g1_i28x28_w1x1"))
        backend.separable().plan(depth, point, target, ())
    asking = ""
    threads.CompiledPool()
    for dtype in targets.BITS:
        peak.fma_peak(dtype, 1)
    peak._copy(1 << 15, 1)
    for size in copying.MOVED_AS:
        for kind in (copying.ELEMENTS, copying.RUNS, *([copying.SQUARES] if size < 16 else [])):
            copying._kernel(size, kind)
    kinds = list(map(precision.numpy_dtype, casting.KINDS))
    for into, out_of in itertools.product(kinds, kinds):
        casting._kernel(into, out_of)
    threads.run, cache.function = run, function

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    layout = cache._machine().target_data
    names, kernels, seen = [], [], Counter()
    for (name, arguments), (build, solver, caller) in wanted.items():
        kind = solver, caller, *re.findall(r"\\d+", name)[:1], re.sub(r"\\d+", "", name)
        seen[kind] += 1
        if seen[kind] > most:
            continue
        text = frontend.llvm_code(arguments, build)
        text = re.sub(r'^target triple = .*$', f'target triple = "{triple}"', text, flags=re.M)
        text = re.sub(r'^target datalayout = .*$', f'target datalayout = "{layout}"', text,
                      flags=re.M)
        trouble = ""
        try:
            if cache._emit(text, arguments) is None:
                trouble = "needs numba's run time"
            else:
                names.append(name)
        except RuntimeError as error:
            trouble = str(error)
        kernels.append({"name": name, "solver": solver, "caller": caller, "trouble": trouble})
    keep(names)
    # Functions of numba's own (min, max), which it keeps for everybody, are left as LLVM code
    # without an environment.  They must not read it.
    import gc
    from numba.core.registry import CPUDispatcher
    kept = [found for found in gc.get_objects()
            if type(found) is CPUDispatcher and found.py_func.__module__.startswith("numba.")]
    for found in kept:
        for text in found.inspect_llvm().values():
            users = [line for line in text.splitlines()
                     if "NumbaEnv" in line and not line.startswith("@_ZN08NumbaEnv")]
            assert not users, (found, users)
    print(json.dumps(kernels))
    """
)

# For each family of kernels, what makes it ask for all its kinds of kernels.
SPECS = [
    f"{direction}_{dtype}_{layout}"
    for dtype in ("f32", "f64")
    for direction, layout in (
        ("conv", "NCHW_n1c64k64g1_i28x28_w3x3_p1_bias_act=relu"),
        ("conv", "NHWC_n1c64k64g1_i28x28_w3x3_p1_bias_act=relu"),
        ("conv", "NCHW_n1c8k8g1_i28x28_w5x5_p2"),
        ("conv", "NCHW_n1c3k16g1_i31x33_w7x7_s2_p3"),
        ("conv", "NCHW_n1c1k1g1_i200x200_w31x31"),
        ("conv", "NCL_n1c1k1g1_i5000_w300"),
        ("conv", "NCDHW_n1c1k1g1_i60x60x60_w9x9x9"),
        ("conv", "NCHW_n1c32k32g32_i28x28_w3x3_p1"),
        ("conv", "NHWC_n1c32k32g32_i28x28_w3x3_p1"),
        ("convt", "NCHW_n2c70k64g1_i30x30_w4x4_s2_p1"),
        ("convt", "NHWC_n2c64k12g1_i30x30_w2x2_s2"),
        ("wgrad", "NCHW_n2c64k70g1_i60x60_w3x3_p1"),
        ("wgrad", "NHWC_n1c3k12g1_i60x60_w3x3_p1"),
        ("wgrad", "NCHW_n1c32k32g32_i28x28_w3x3_p1"),
    )
] + [f"conv_{dtype}_NCHW_n1c1k1g1_i200x200_w31x31_bias" for dtype in ("c64", "c128")]
SPECS.append("conv_i64_NCHW_n1c64k64g1_i28x28_w3x3_p1_bias")
SPECS += [f"conv_{dtype}_NCHW_n1c64k64g1_i28x28_w3x3_p1" for dtype in ("i8", "u8")]

x86_64 = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="names of x86-64 processors, ELF",
)


class Processes:
    """The processes of this file, each run when its answer is first asked for, and what they left.

    One after the other, for they compile on one core and other tests have the others.
    """

    def __init__(self, where: Path) -> None:
        self._where = where
        self._answers: dict[tuple[str, int], Any] = {}

    def answer(self, name: str, most: int) -> Any:
        """What a process printed: of an instruction set that runs here, or for aarch64."""
        if (name, most) not in self._answers:
            if name == "aarch64":
                command, variables = [CROSS, json.dumps([*AARCH64, SPECS, most])], {}
            else:
                cpu, features = PROCESSORS[name]
                command = [CONFORM, str(most)]
                variables = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
            script, *arguments = command
            kept = self._kept(name, most)
            kept.mkdir(parents=True)
            done = subprocess.run(
                [sys.executable, "-c", script, str(kept), *arguments],
                env={**os.environ, **variables, "CONVJIT_CACHE_DIR": str(kept.parent / "cache")},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            assert done.returncode == 0, (
                f"ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-8000:]}"
            )
            self._answers[name, most] = json.loads(done.stdout)
        return self._answers[name, most]

    def assembly(self, name: str, most: int) -> dict[str, str]:
        """The kernels that were compiled, by name."""
        kept = sorted(self._kept(name, most).glob("*.s"))
        return {path.name.removesuffix(".s"): path.read_text() for path in kept}

    def objects(self, name: str, most: int) -> dict[str, bytes]:
        kept = sorted(self._kept(name, most).glob("*.o"))
        return {path.name.removesuffix(".o"): path.read_bytes() for path in kept}

    def _kept(self, name: str, most: int) -> Path:
        return self._where / f"{name}-{most}" / "kept"


def runs_here(isa: str) -> bool:
    from llvmlite import binding as llvm

    has = llvm.get_host_cpu_features()
    return all(has.get(feature) for feature in ({"avx2", "fma"} if isa == "avx2" else {"sse2"}))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(tmp_path_factory.mktemp("isa"))


# -------------------------------------------------------------------- what runs here


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.timeout(TIMEOUT + 60)
@x86_64
@pytest.mark.parametrize("most", KERNELS)
@pytest.mark.parametrize("isa", PROCESSORS)
def test_quick_cases_and_registers(isa: str, most: int, processes: Processes) -> None:
    if not runs_here(isa):
        pytest.skip(f"this processor lacks {isa}")
    if targets.codegen().isa == isa:
        pytest.skip("all of the other tests are for this instruction set")
    answer = processes.answer(isa, most)
    assert answer["isa"] == isa
    assert answer["numbas"], "the tables are for another machine than numba's code"
    assert not answer["wrong"]
    assert all(answer["passed"][solver] for solver in SOLVERS), answer["passed"]
    assembly = processes.assembly(isa, most)
    assert assembly
    assert {name: bad for name, text in assembly.items() if (bad := foreign(text, isa))} == {}
    # They do use the vectors that there are.
    width = {"avx2": "%ymm", "sse2": "%xmm"}[isa]
    assert sum(width in text for text in assembly.values()) > len(assembly) // 2
    objects = processes.objects(isa, most)
    assert {name: more for name, o in objects.items() if (more := undefined(o) - cache.LIBC)} == {}


MODULE = """
declare float @fmaf(float, float, float)
define void @add(ptr %x, ptr %y) {
  %a = load <16 x float>, ptr %x
  %b = load <16 x float>, ptr %y
  %c = fadd <16 x float> %a, %b
  store <16 x float> %c, ptr %x
  %d = load float, ptr %y
  %e = call float @fmaf(float %d, float %d, float %d)
  store float %e, ptr %y
  ret void
}
"""


@x86_64
@pytest.mark.parametrize(
    ("cpu", "features", "lacking"),
    [
        ("znver4", "+avx512f,+avx512vl,+avx512dq", {"avx2", "sse2"}),
        (*PROCESSORS["avx2"], {"sse2"}),
        (*PROCESSORS["sse2"], set()),
    ],
)
def test_foreign_registers_and_symbols_are_found(
    cpu: str, features: str, lacking: set[str]
) -> None:
    from llvmlite import binding as llvm

    cache._initialise()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3)
    with llvm.parse_assembly(MODULE) as module:
        assembly = machine.emit_assembly(module)
    with llvm.parse_assembly(MODULE) as module:
        code = machine.emit_object(module)
    assert {isa for isa in PROCESSORS if foreign(assembly, isa)} == lacking
    assert undefined(code) == {"fmaf"}
    if "avx2" in lacking:
        assert any(found.startswith("%zmm") for found in foreign(assembly, "avx2"))


# -------------------------------------------------------------------- what is only compiled


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.timeout(TIMEOUT + 60)
@x86_64
@pytest.mark.parametrize("most", OF_A_KIND)
def test_kernels_compile_for_aarch64(most: int, processes: Processes) -> None:
    kernels = processes.answer("aarch64", most)
    assert {k["name"]: k["trouble"] for k in kernels if k["trouble"]} == {}
    objects = processes.objects("aarch64", most)
    assert set(objects) == {k["name"] for k in kernels}
    for code in objects.values():
        assert code[:5] == b"\x7fELF\x02"
        assert struct.unpack_from("<H", code, 18) == (183,)  # EM_AARCH64
    assert {name: more for name, o in objects.items() if (more := undefined(o) - cache.LIBC)} == {}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.timeout(TIMEOUT + 60)
@x86_64
@pytest.mark.parametrize("most", OF_A_KIND)
@pytest.mark.parametrize("solver", SOLVERS)
def test_kernels_for_aarch64_multiply_vectors(solver: str, most: int, processes: Processes) -> None:
    """Of each dtype: four float32 or two float64 are multiplied and added at once."""
    kernels = processes.answer("aarch64", most)
    theirs = {k["name"] for k in kernels if k["solver"] == solver}
    shared = {k["name"] for k in kernels if k["solver"] != solver}
    assembly = processes.assembly("aarch64", most)
    if solver.startswith("numba.winograd"):  # the products of all of them are the same kernels
        theirs |= {name for name in shared if name.startswith(("rows.", "winograd."))}
    for lanes in ("4s", "2d"):
        fused = re.compile(rf"\bfml[as]\s+v\d+\.{lanes}")
        assert any(fused.search(assembly[name]) for name in theirs), (lanes, theirs)


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.timeout(TIMEOUT + 60)
@x86_64
@pytest.mark.parametrize("most", OF_A_KIND)
def test_all_families_of_kernels_are_compiled_for_aarch64(most: int, processes: Processes) -> None:
    """A module that asks the cache for kernels is among those that asked (else add to SPECS)."""
    package = Path(convjit_numba.__file__).parent
    asking = {
        f"convjit_numba.{path.stem}"
        for path in package.glob("*.py")
        if "cache.function(" in path.read_text() and path.stem != "cache"
    }
    assert {k["caller"] for k in processes.answer("aarch64", most)} >= asking
