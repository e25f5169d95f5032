"""Fixtures of every ring: the header that tells which backends work here, and clean settings."""

from __future__ import annotations

import os

import pytest

from convjit import registry
from convjit.testing import plugin

# Variables that a developer may have set must not decide what the tests test.
for variable in [name for name in os.environ if name.startswith("CONVJIT_")]:
    if variable != "CONVJIT_CACHE_DIR":
        del os.environ[variable]
os.environ.pop("COLUMNS", None)  # tables are as wide as a terminal that says so


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Each backend with its probe's answer, so that a ring that is skipped is seen."""
    ours = [name for name in registry.names() if registry.is_builtin(name)]
    return plugin.header([*ours, *plugin.chosen(config)])
