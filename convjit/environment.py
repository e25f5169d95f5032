"""What a bug report needs: versions, the machine, the settings in force, the backends."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convjit import calibration, config, health, registry, tunedb
from convjit._version import __version__
from convjit.errors import BackendError

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "ml_dtypes", "platformdirs", "rich")
PEERS = (
    "torch", "onnxruntime", "onnx", "ncnn", "openvino", "opencv-python-headless", "opencv-python",
    "cupy",
)  # fmt: skip

# Instruction sets that kernels care about, the widest last.
_ISA_FLAGS = (
    ("sse2", "SSE2"), ("sse4_2", "SSE4.2"), ("avx", "AVX"), ("f16c", "F16C"), ("fma", "FMA"),
    ("avx2", "AVX2"), ("avx512f", "AVX-512F"), ("avx512_bf16", "AVX-512 BF16"),
    ("amx_tile", "AMX"), ("asimd", "NEON"), ("sve", "SVE"), ("sve2", "SVE2"),
)  # fmt: skip


def cpu_name() -> str:
    """The processor's model, as the system tells it."""
    for key in ("model name", "Model", "Hardware"):
        if value := _cpuinfo().get(key):
            return value
    return platform.processor() or platform.machine()


def isa() -> tuple[str, ...]:
    """Instruction sets of the processor, empty where the system does not tell."""
    flags = set(_cpuinfo().get("flags", _cpuinfo().get("Features", "")).split())
    return tuple(name for flag, name in _ISA_FLAGS if flag in flags)


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo, empty on other systems."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return fields
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions of these names that are installed."""
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts(*, load: bool = False) -> dict[str, Any]:
    """Everything that :func:`describe` prints, for JSON.

    Parameters
    ----------
    load : bool
        Whether to import every backend that is not blocked, to tell its health and its device.
    """
    settings = config.current()
    rows = registry.status(load=registry.names() if load else ())
    return {
        "convjit": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": versions(PACKAGES),
        "peers": versions(PEERS),
        "cpu": cpu_name(),
        "isa": list(isa()),
        "cores": config.available_cores(),
        "threads": config.num_threads(),
        "cache_dir": str(config.cache_dir()),
        "settings": {name: getattr(settings, name) for name in config.SETTING_NAMES},
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("CONVJIT_")
        },
        "backends": [
            {
                "name": row.name,
                "device": row.device or None,
                "state": row.state.value,
                "distribution": row.distribution,
                "version": row.version,
                "reason": row.reason or None,
                "target": _target(row.name) if row.state is health.State.LOADED else None,
            }
            for row in rows
        ],
    }


def _target(name: str) -> dict[str, Any] | None:
    """A loaded backend's view of its device."""
    try:
        backend = registry.get(name)
        target = calibration.target(backend)
    except BackendError:
        return None
    return {
        "description": target.description,
        "fingerprint": target.fingerprint,
        "cores": target.cores,
        "measured": target.measured,
        "figures": calibration.state(backend),
        "tuned": sum(
            (name, target.fingerprint) == (owner, machine)
            for owner, machine, _ in tunedb.everything()
        ),
        "peak": dict(target.peak),
        "bandwidth": dict(target.bandwidth),
        "caches": dict(target.caches),
        "rates": dict(target.rates),
        "features": dict(target.features),
    }


def describe(*, load: bool = False) -> str:
    """What :func:`convjit.show_config` and ``python -m convjit info`` print."""
    from convjit.tables import table

    known = facts(load=load)
    peers = ", ".join(f"{n} {v}" for n, v in known["peers"].items()) or "none"
    lines = [
        ("convjit", known["convjit"]),
        ("python", f"{known['python']} ({known['executable']})"),
        ("platform", known["platform"]),
        ("packages", ", ".join(f"{n} {v}" for n, v in known["packages"].items())),
        ("peers", peers),
        ("processor", known["cpu"]),
        ("instructions", ", ".join(known["isa"]) or "unknown"),
        ("cores", f"{known['cores']} usable, {known['threads']} threads in force"),
        ("cache", known["cache_dir"]),
    ]
    for row in known["backends"]:
        if row["target"] is not None:
            lines.append((f"{row['name']} sees", _told_target(row["target"])))
    text = "\n".join(f"{name:<13} {value}" for name, value in lines)
    in_force = {n: v for n, v in known["settings"].items() if v not in (None, ())}
    settings = table(
        ["setting", "value", "from"],
        [(n, v, _source(n, known["environment"])) for n, v in in_force.items()]
        or [("(defaults)", "", "")],
    )
    backends = table(
        ["backend", "device", "state", "distribution", "~reason"],
        [
            (
                row["name"],
                row["device"] or "-",
                row["state"],
                f"{row['distribution']} {row['version']}".strip(),
                row["reason"] or "",
            )
            for row in known["backends"]
        ],
    )
    return f"{text}\n\n{settings}\n\n{backends}"


def _source(setting: str, environment: dict[str, str]) -> str:
    variable = f"CONVJIT_{setting.upper()}"
    return variable if variable in environment else "convjit.use"


def _told_target(target: dict[str, Any]) -> str:
    peaks = ", ".join(
        f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in target["peak"].items() if rate
    )
    told = f"{target['description']}; peak {peaks or 'unknown'}; {target['figures']}"
    return f"{told}; tuned problems: {target['tuned']}" if target["tuned"] else told
