"""A GPU's report: what its backends compute how fast, beside PyTorch's cuDNN where that is.

Operands lie on the device and a call waits for it, so that nothing is timed but kernels and their
launches.  Each solver that takes a layer as it is is timed, the fastest first.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from convjit import calibration, environment, precision, registry
from convjit._version import __version__
from convjit.spec import ConvSpec
from convjit.spi import Backend
from convjit.tables import markdown, milliseconds

# Layers of each kind: ResNet-50's, MobileNet's, a first layer, large kernels, double and half.
LAYERS = (
    "conv_f32_NCHW_n16c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n16c256k256g1_i14x14_w3x3_p1x1",
    "conv_f32_NCHW_n16c256k64g1_i56x56_w1x1",
    "conv_f32_NCHW_n16c128k128g1_i56x56_w3x3_s2x2_p1x1",
    "conv_f32_NCHW_n16c3k64g1_i224x224_w7x7_s2x2_p3x3",
    "conv_f32_NCHW_n16c384k384g384_i14x14_w3x3_p1x1",
    "conv_f32_NCHW_n1c32k32g1_i256x256_w15x15_p7x7",
    "conv_f32_NCL_n8c64k64g1_i16384_w9_p4",
    "conv_f64_NCHW_n4c64k64g1_i56x56_w3x3_p1x1",
    "conv_f16_NCHW_n16c256k256g1_i14x14_w3x3_p1x1",
)
PACKAGES = (
    "numba-cuda", "cuda-bindings", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "numba",
    "numpy",
)  # fmt: skip
TURN = 0.3  # seconds of calls of one solver
CALLS = 3, 300  # of a turn, at least and at most


@dataclass(frozen=True, slots=True)
class Timed:
    """A solver's time for a layer.

    Attributes
    ----------
    layer, solver : str
    seconds : float
    share : float
        Of the peak in the layer's dtype that the direct sum's operations would be; 0 if unknown.
    torch : float or None
        cuDNN's seconds, its algorithm chosen by measuring.
    note : str
        Why there is no time.
    """

    layer: str
    solver: str
    seconds: float
    share: float
    torch: float | None
    note: str = ""


def least(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call of a turn; the first one compiles and is not counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + TURN
    while len(times) < CALLS[0] or (len(times) < CALLS[1] and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(
    names: Iterable[str],
    *,
    layers: Sequence[str] = LAYERS,
    told: Callable[[str], None] = lambda line: None,
) -> list[Timed]:
    """Time the solvers of backends on the layers that they take as they are.

    Parameters
    ----------
    names : iterable of str
        Backends; those without a method ``resident`` are passed over.
    layers : sequence of str
        Specs.
    told : callable
        Given the name of each layer before it is timed.
    """
    backends = [registry.get(name) for name in names]
    found = []
    for layer in layers:
        told(layer)
        spec = ConvSpec.parse(layer)
        try:
            torch = torch_seconds(spec)
        except Exception as error:  # a report goes on
            torch = None
            told(f"torch: {type(error).__name__}: {error}")
        rows = [row for backend in backends for row in _of_backend(backend, spec, torch)]
        found += sorted(rows, key=lambda row: row.seconds)
    return found


def _of_backend(backend: Backend, spec: ConvSpec, torch: float | None) -> list[Timed]:
    resident = getattr(backend, "resident", None)
    if resident is None:
        return []
    target = calibration.target(backend)
    peak = target.peak.get(precision.accumulator_dtype(spec.dtype), 0.0)
    rows = []
    for solver in registry.solvers(backend):
        if solver.refuse(spec, target) is not None:
            continue
        seconds, share, note = float("inf"), 0.0, ""
        try:
            seconds = least(resident(solver, spec))
            share = spec.flops / seconds / peak if peak else 0.0
        except Exception as error:  # a report says what failed and goes on
            note = f"{type(error).__name__}: {error}"
        rows.append(Timed(str(spec), solver.id, seconds, share, torch, note))
    return rows


def torch_seconds(spec: ConvSpec, device: str = "cuda") -> float | None:
    """PyTorch's seconds for a forward layer; None where it, or its device, is not there."""
    if find_spec("torch") is None:
        return None
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    function = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}.get(spec.ndim)
    if function is None or any(lo != hi for lo, hi in spec.padding):
        return None
    kind = getattr(torch, spec.dtype)
    x = torch.ones(spec.x_shape, dtype=kind, device=device)
    w = torch.ones(spec.w_shape, dtype=kind, device=device)
    padding = tuple(lo for lo, _ in spec.padding)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # as convjit's default precision

    def call() -> None:
        function(x, w, None, spec.stride, padding, spec.dilation, spec.groups)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return least(call)


def driver() -> str:
    """What nvidia-smi says of the GPUs and their driver, empty where it is not."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    asked = [command, "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(answer.stdout.strip().splitlines()) if answer.returncode == 0 else ""


def facts(names: Iterable[str]) -> dict[str, str]:
    """What a report begins with."""
    known = {
        "convjit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "nvidia-smi": driver() or "not found",
        "packages": ", ".join(f"{n} {v}" for n, v in environment.versions(PACKAGES).items()),
    }
    for name in names:
        backend = registry.get(name)
        target = calibration.target(backend)
        known[name] = f"{target.description}; figures {calibration.state(backend)}"
    return known


def as_dicts(rows: Iterable[Timed]) -> list[dict[str, Any]]:
    """For JSON, without what it cannot say."""
    return [
        {**asdict(row), "seconds": row.seconds if row.seconds < float("inf") else None}
        for row in rows
    ]


def text(known: dict[str, str], rows: Sequence[Timed]) -> str:
    """The facts and the times in Markdown."""
    lines = [f"- {name}: {value}" for name, value in known.items()]
    if not rows:
        return "\n".join(lines)
    columns = ["layer", "solver", ">ms", ">% of peak", ">torch ms", ">torch / convjit", "note"]
    cells = [
        (
            row.layer, row.solver, milliseconds(row.seconds) if not row.note else "-",
            f"{100 * row.share:.1f}" if row.share else "-", milliseconds(row.torch),
            f"{row.torch / row.seconds:.2f}" if row.torch and not row.note else "-", row.note,
        )
        for row in rows
    ]  # fmt: skip
    return "\n".join([*lines, "", markdown(columns, cells)])
