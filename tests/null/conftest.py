"""A backend that plans and counts but computes nothing: the ring of dispatch."""

from __future__ import annotations

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.precision import Numerics
from convjit.spec import Direction
from convjit.spi import SPI_VERSION, Feature, Phase, Refusal, Target, Work


class NullSolver:
    """Takes forward problems; costs, numerics and workspace are what the test says."""

    def __init__(self, name, algorithm, gflops, *, workspace=0, pack_flops=0.0, **numerics):
        self.id = f"null.{name}"
        self.algorithm = algorithm
        self.flops_per_second = gflops * 1e9
        self.workspace = workspace
        self.pack_flops = pack_flops
        self.numerics = Numerics(**({"method": algorithm} | numerics))
        self.planned = 0
        self.asked = 0

    def refuse(self, spec, target):
        self.asked += 1
        if spec.direction is not Direction.FORWARD:
            return Refusal(Feature.OTHER, "forward only, and nothing to lower it to")
        return None

    def estimate(self, spec, target):
        seconds = spec.flops / self.flops_per_second
        return Work(
            (Phase("work", seconds * 1e12, "null"),),
            self.numerics,
            pack=Phase("pack", self.pack_flops, "null"),
            workspace=self.workspace,
        )

    def configs(self, spec, target):
        return [(("tile", 4),), (("tile", 8),)]

    def plan(self, spec, target, config):
        self.planned += 1
        return NullExecutable(self, config)


class NullExecutable:
    def __init__(self, solver, config):
        self.solver, self.config, self.workspace = solver, config, solver.workspace
        self.packed = 0

    def pack(self, rhs):
        self.packed += 1
        return "packed"

    def run(self, lhs, packed, bias, out, workspace):
        assert packed == "packed"
        assert (workspace is None) == (self.workspace == 0)
        if workspace is not None:
            assert workspace.nbytes == self.workspace
            assert workspace.ctypes.data % 64 == 0
        out[...] = 0


class NullBackend:
    name = "null"
    device = "cpu"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def __init__(self, solvers):
        self._solvers = solvers

    def probe(self):
        return None

    def array_namespace(self):
        return np

    def target(self, device_id=0):
        return Target(
            fingerprint="null", device="cpu", description="nothing", cores=1,
            peak={"float32": 1e12}, rates={"null": 1e12}, bandwidth={"copy": 1e12},
            caches={}, launch=0.0, call=0.0,
        )  # fmt: skip

    def solvers(self):
        return self._solvers


@pytest.fixture
def solvers():
    """The solvers of the registered backend "null", by name."""
    made = {
        "direct": NullSolver("direct", "direct", 10),
        "gemm": NullSolver("gemm", "gemm", 50, workspace=1 << 20, pack_flops=1e9),
        "winograd": NullSolver(
            "winograd", "winograd", 100, tile=(4, 4), spreads_nonfinite=True, pack_flops=1e10
        ),
        "tf32": NullSolver("tf32", "gemm", 200, operands="tf32"),
        "loose": NullSolver("loose", "direct", 20, deterministic=False),
    }
    registry.register(NullBackend(list(made.values())))
    yield made
    registry.unregister("null")
    convjit.refresh()
