"""The layers: a module of convjit imports only to its left, a backend only the SPI side.

The sources are parsed, not imported, so that lazy imports inside functions count too.  Imports for
annotations alone (``if TYPE_CHECKING``) do not.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the left to the right.  A module may also import from its own layer, without a circle.
# "x.*" is the package x and everything below it that has no line of its own.
LAYERS = (
    ("errors", "_version", "locks", "staleness", "tables", "together"),
    ("config", "store", "algorithms", "algorithms.geometry"),
    ("layout", "precision", "spec"),
    ("algorithms.*",),
    (
        "arena",
        "spi",
        "gauges",
        "cost",
        "gpus",
        "occupancy",
        "planes",
        "blockwise",
        "cupyarrays",
        "parsing",
        "views",
        "arguments",
        "machinecode",
    ),
    ("checks", "discovery", "health"),
    ("records", "profiling", "profiled"),
    ("registry", "devices", "steps", "rules", "lowering", "guard", "fallback", "transfers"),
    ("gauging", "calibration", "revisions", "tunedb", "ranking", "rank1"),
    ("packing", "operands", "plans", "dispatch", "calls", "settings"),
    ("environment", "separable_offer", "separable", "sweeps", "pictures"),
    (
        "turns",
        "tuning",
        "explanation",
        "showing",
        "repro",
        "separable_explanation",
        "separable_tuning",
    ),
    ("planning", "upkeep", "api"),
    ("",),  # convjit/__init__.py: the public names
    ("testing.*",),
    ("bench.*", "demo.*", "selftest", "warmup", "tuner", "commands.*", "cli", "__main__"),
)
BACKEND_MAY_IMPORT = (
    "errors", "_version", "locks", "store", "spec", "layout", "precision", "algorithms", "spi",
    "gauges", "cost", "gpus", "occupancy", "planes", "blockwise", "cupyarrays", "profiling",
)  # fmt: skip


def package_root(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} cannot be found"
    assert spec.submodule_search_locations is not None, f"{name} is not a package"
    return Path(next(iter(spec.submodule_search_locations)))


ROOT = package_root("convjit")
EXAMPLE = Path(__file__).resolve().parents[2] / "backends" / "example"


def module_name(path: Path, root: Path) -> str:
    """``algorithms/oracle.py`` -> ``algorithms.oracle``; ``__init__`` is the package."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path, ROOT): path for path in sorted(ROOT.rglob("*.py"))}


def rank(module: str) -> int:
    for pattern in (module, *reversed([f"{p}.*" for p in prefixes(module)])):
        for number, layer in enumerate(LAYERS):
            if pattern in layer:
                return number
    raise AssertionError(
        f"convjit.{module} has no layer: give it a place in LAYERS, as far to the left as it can be"
    )


def prefixes(module: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, those under ``if TYPE_CHECKING`` left out."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            for other in child.orelse if isinstance(child, ast.If) else ():
                yield from statements(other)
            continue
        yield child
        yield from statements(child)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of what a file imports, ``a.b`` also for ``from a import b``."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def convjit_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of convjit that a file imports, without the leading ``convjit.``."""
    for name, line in imported(path):
        top, _, rest = name.partition(".")
        if top != "convjit":
            continue
        while rest and rest not in MODULES:  # a name inside a module, not a module
            rest = rest.rpartition(".")[0]
        yield rest, line


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m or "__init__")
def test_a_module_imports_only_to_its_left(module: str) -> None:
    wrong = [
        f"line {line}: convjit.{module or '__init__'} imports convjit.{other}"
        for other, line in convjit_imports(MODULES[module])
        if rank(other) > rank(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_in_a_circle() -> None:
    graph = {m: {o for o, _ in convjit_imports(p) if o != m} for m, p in MODULES.items()}
    state: dict[str, str] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", f"circle: {' -> '.join((*trail, module))}"
        if module in state:
            return
        state[module] = "open"
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        state[module] = "done"

    for module in graph:
        visit(module, ())


def backend_files() -> Iterator[tuple[str, Path]]:
    for package in ("convjit_scipy", "convjit_numba", "convjit_numba_cuda", "convjit_cupy"):
        for path in sorted(package_root(package).rglob("*.py")):
            yield package, path
    if EXAMPLE.is_dir():  # a checkout: the example is not in the wheel
        for path in sorted(EXAMPLE.glob("convjit_example/**/*.py")):
            yield "convjit_example", path


@pytest.mark.parametrize(
    ("package", "path"), [pytest.param(*f, id=f"{f[0]}/{f[1].name}") for f in backend_files()]
)
def test_a_backend_imports_only_the_spi_side(package: str, path: Path) -> None:
    wrong = []
    for name, line in imported(path):
        top, _, rest = name.partition(".")
        if top == "convjit" and not rest.startswith(BACKEND_MAY_IMPORT):
            wrong.append(f"{path.name}:{line}: {package} imports convjit.{rest}")
        if top.startswith("convjit_") and top != package:
            wrong.append(f"{path.name}:{line}: {package} imports another backend, {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["errors", "config", "spec", "spi"])
def test_the_left_of_the_house_imports_numpy_and_the_standard_library_alone(module: str) -> None:
    import sys

    allowed = {*sys.stdlib_module_names, "numpy", "convjit", "ml_dtypes", "platformdirs"}
    strangers = {n for n, _ in imported(MODULES[module]) if n.partition(".")[0] not in allowed}
    assert not strangers


def test_the_walk_sees_lazy_imports_and_skips_annotations(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from convjit.cli import main\n"
        "def f():\n    from convjit import api\n    import convjit.spi\n"
    )
    assert {n for n, _ in imported(source)} == {
        "typing.TYPE_CHECKING",
        "convjit.api",
        "convjit.spi",
    }
