"""``convjit.use``: settings for a block of code, over those of the environment."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from convjit import config
from convjit import precision as precisions
from convjit.errors import ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _names(argument: str, value: Any) -> tuple[str, ...]:
    """Several names, of backends or solvers."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"{argument}={value!r} is neither a name nor a tuple of names; give one such as "
            f'{argument}="numba", or {argument}=("numba", "scipy").'
        )
    return tuple(value)


class use:
    """Settings for a block of code, nestable, correct across threads and asyncio tasks.

    Parameters
    ----------
    backend, algorithm, precision
        What :func:`conv` takes, as defaults inside the block.
    num_threads : int, optional
    disable : str or tuple of str, optional
        Backends and ids of solvers that are not considered.
    priority : str or tuple of str, optional
        Third-party backends that join ``backend=None``, the first preferred.
    workspace_limit : int, optional
        Bytes.

    Raises
    ------
    ConfigError, TypeError
        For a bad value; unknown names raise at the first call inside the block.

    Examples
    --------
    >>> with convjit.use(num_threads=1, precision="exact"):  # doctest: +SKIP
    ...     y = convjit.conv(x, w)

    As a decorator it holds for every call of the function, a coroutine function too.
    """

    def __init__(
        self,
        *,
        backend: str | tuple[str, ...] | None = None,
        algorithm: str | None = None,
        precision: str | None = None,
        num_threads: int | None = None,
        disable: str | tuple[str, ...] | None = None,
        priority: str | tuple[str, ...] | None = None,
        workspace_limit: int | None = None,
    ) -> None:
        changes: dict[str, Any] = {}
        if backend is not None:
            changes["backend"] = backend if isinstance(backend, str) else _names("backend", backend)
        if algorithm is not None:
            if not isinstance(algorithm, str):
                raise TypeError(
                    f"algorithm={algorithm!r} is not a name; give a family or a solver's id."
                )
            changes["algorithm"] = algorithm
        if precision is not None:
            precisions.Policy(precision=precision)
            changes["precision"] = precision
        if num_threads is not None:
            if isinstance(num_threads, bool) or not isinstance(num_threads, int):
                raise TypeError(f"num_threads={num_threads!r} is not a whole number.")
            if not 1 <= num_threads <= config.MAX_THREADS:
                raise ConfigError(
                    f"num_threads={num_threads} must be from 1 to {config.MAX_THREADS}."
                )
            changes["num_threads"] = num_threads
        if workspace_limit is not None:
            precisions.Policy(workspace_limit=workspace_limit)
            changes["workspace_limit"] = workspace_limit
        for name, value in (("disable", disable), ("priority", priority)):
            if value is not None:
                changes[name] = (value,) if isinstance(value, str) else _names(name, value)
        self._changes = changes

    def __enter__(self) -> use:
        config.push(self._changes)
        return self

    def __exit__(self, *exception: object) -> None:
        config.pop()

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return awaited  # type: ignore[return-value]

        @functools.wraps(function)
        def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                return function(*args, **kwargs)

        return called
