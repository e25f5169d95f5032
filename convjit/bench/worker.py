"""The process of one engine: ``python -m convjit.bench.worker ENGINE``, requests line by line.

A request is a JSON object with the fields of a :class:`~convjit.bench.cases.Case`, ``threads``,
``seconds`` and ``plain``; the answer is one line, ``{"seconds": ...}``, ``{"left_out": reason}``
or ``{"error": text}``.  An engine that cannot be imported answers ``{"missing": text}``.  What a
library itself prints goes to the standard error stream.  ``{"peak": dtype}`` and
``{"bandwidth": true}`` ask for what the machine can do.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import IO, Any

from convjit.bench import gradients, verify
from convjit.bench.cases import Case
from convjit.bench.engines import ENGINES, MODULES, STRANGERS, Engine, Job, NotOffered
from convjit.explanation import low_quartile


def _import_error(name: str) -> str:
    """Why an engine's library cannot be imported, empty if it can."""
    try:
        for module in MODULES[name]:
            importlib.import_module(module)
    except Exception as error:  # a stranger's library may raise anything while it is imported
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


class Worker:
    """One engine; it keeps the last case prepared, for the next turn."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._prepared: tuple[Any, Job, Engine] | None = None

    def prepare(self, request: dict[str, Any]) -> tuple[Job, Engine]:
        """The job and the engine of a request, the ones of the last turn if they fit."""
        algorithm = request.get("algorithm", "")
        key = (request["spec"], request["kind"], algorithm, request["plain"], request["threads"])
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # its memory, before the next is made
            case = Case(request["group"], request["kind"], request["spec"], algorithm=algorithm)
            spec = case.problem
            verify.check_supported(spec)
            job = Job(case, spec, *verify.operands(spec), request["threads"], request["plain"])
            self._prepared = (key, job, gradients.engine(self.name, job))
        return self._prepared[1:]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Prepare, time, check."""
        if "peak" in request:
            from convjit.bench.peak import measured_peak

            return measured_peak(request["peak"])
        if "bandwidth" in request:
            from convjit.bench.peak import measured_bandwidth

            return measured_bandwidth()
        try:
            job, engine = self.prepare(request)
            seconds = low_quartile(engine.run, request["seconds"], least=4)
            result = engine.result(engine.run())
            error = verify.check(job.spec, job.lhs, job.rhs, job.bias, result)
        except NotOffered as reason:
            return {"left_out": str(reason)}
        except Exception as failure:  # whatever a library raises is its answer
            return {"error": f"{type(failure).__name__}: {failure}"[:400]}
        if self.name.startswith("convjit"):
            found = [module for module in STRANGERS if module in sys.modules]
            if found:
                return {"error": f"convjit's process has imported {', '.join(found)}"}
        return {"seconds": seconds, "error_found": error, **engine.facts}


def serve(name: str, requests: IO[str], answers: IO[str]) -> None:
    """Answer until the requests end."""
    missing = _import_error(name)
    worker = Worker(name)
    for line in requests:
        reply = {"missing": missing} if missing else worker.answer(json.loads(line))
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> int:
    """Serve the engine that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] not in ENGINES:
        sys.stderr.write(f"usage: python -m convjit.bench.worker ({'|'.join(ENGINES)})\n")
        return 2
    # The answers keep the real standard output; a library's prints are sent elsewhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
