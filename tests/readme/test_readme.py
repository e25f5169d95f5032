"""Every block of the README is true: it runs, and what it shows is what comes out.

* ``python`` blocks share one namespace, in order.  A block with prompts is a doctest, in which
  ``...`` stands for what differs between machines; one without is run, or, after a comment
  ``<!-- file: PATH -->``, is part of that file.
* ``console`` blocks hold commands after ``$ ``.  Each is run, and every word shown below it is
  printed by it (times and ranks differ between machines), or it is listed here with the reason why
  it is not.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Commands that are not run here, by what they begin with.
RUN_ELSEWHERE = {
    "python3 -m venv": "installs; CI installs the wheel and runs the same commands",
    ".venv/bin/pip install": "installs; CI installs the wheel and runs the same commands",
    ".venv/bin/pytest": "runs this test",
    "pip install": "installs; CI builds the example and installs it",
    "cd backends/example": "CI runs the example's conformance test in an environment of its own",
    "python -m convjit bench": "minutes of timing",
    "python -m convjit calibrate": "would decide what other tests choose; its own tests run it",
    "python -m convjit regret": "compiles and times for minutes",
    "python -m convjit selftest --device cuda": "needs a GPU",
    "python -m convjit tune": "minutes of measurements; tests of the command line do",
    "python -m asv": "CI runs every benchmark once",
    "asv_bench/record": "measures revisions for minutes",
    "python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1 --packed --compare": (
        "a minute of measurements; tests of the command line do"
    ),
    "python -m convjit demo": "CI runs it; tests of the command line do",
    "python tests/tutorials": "tests/tutorials runs them",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, first line, and the file it claims to be part of."""

    language: str
    text: str
    line: int
    file: str | None

    @property
    def id(self) -> str:
        return f"line {self.line} {self.language}"


def blocks() -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        before = TEXT[: match.start()]
        comment = re.search(r"<!-- file: (\S+) -->\n\Z", before)
        line = before.count("\n") + 2
        found.append(Block(match[1], match[2], line, comment[1] if comment else None))
    return found


BLOCKS = blocks()
PYTHON = [b for b in BLOCKS if b.language == "python" and b.file is None]
FILES = [b for b in BLOCKS if b.file is not None]
COMMANDS = [
    pytest.param(command, shown, id=f"line {block.line}: {command[:60]}")
    for block in BLOCKS
    if block.language == "console"
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
]


def words(text: str) -> set[str]:
    """Names, labels and column headings: what is not a number, a unit or a rule."""
    return set(re.findall(r"[A-Za-z_][\w.]{2,}", text)) - {"KiB", "MiB", "GiB"}


def test_every_block_says_what_it_is() -> None:
    assert {b.language for b in BLOCKS} <= {"python", "console", "toml", "text"}
    assert len(PYTHON) > 5
    assert all(b.file is not None for b in BLOCKS if b.language == "toml")


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    if ">>>" not in block.text:
        code = compile("\n" * (block.line - 1) + block.text, "README.md", "exec")
        exec(code, namespace)
        return
    test = doctest.DocTestParser().get_doctest(
        block.text, namespace, f"README.md, line {block.line}", "README.md", block.line - 1
    )
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(
        test, out=report.append, clear_globs=False
    )
    namespace.update(test.globs)
    assert not report, "".join(report)


def test_the_python_blocks_run_in_order(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    with contextlib.chdir(tmp_path):
        for block in PYTHON:
            run_python(block, namespace)


@pytest.mark.parametrize("block", FILES, ids=lambda b: b.id)
def test_a_block_of_a_file_is_in_that_file(block: Block) -> None:
    assert block.file is not None
    assert block.text.strip() in (ROOT / block.file).read_text(encoding="utf-8")


@pytest.mark.subprocess
@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_runs_and_prints_what_is_shown(command: str, shown: str, tmp_path: Path) -> None:
    reason = next((r for c, r in RUN_ELSEWHERE.items() if command.startswith(c)), None)
    if reason is not None:
        return  # nothing to run: RUN_ELSEWHERE says where it is
    program, *arguments = shlex.split(command)
    assert program == "python", f"what is {program}?"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path, env=dict(os.environ, COLUMNS="120"), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert words(shown) <= words(done.stdout), done.stdout


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", TEXT)
    assert links
    # A copy of the tests has the README and the tests alone.
    if (ROOT / "LICENSE").exists():
        missing = [link for link in links if not (ROOT / link).exists()]
        assert not missing


def test_the_picture_is_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+\.(?:png|jpg))\)", TEXT)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 150_000
