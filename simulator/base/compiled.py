"""Functions that numba compiles, with a cache on disk that they can do without."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

from simulator.base.text import first_line

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """The function, compiled at its first call and kept for later processes where that is possible.

    ``numba.njit(cache=True)`` raises where its cache is full, damaged or cannot be written; this
    compiles anew.
    """
    dispatcher: Any = numba.njit(function)
    if hasattr(dispatcher, "py_func"):  # not where NUMBA_DISABLE_JIT is set
        try:
            dispatcher._cache = _Cache(function)
        except (OSError, RuntimeError) as error:  # no folder that it could be in
            _warn(error)
    compiled_function: Compiled = dispatcher
    return compiled_function


class _Cache(FunctionCache):  # type: ignore[misc]  # untyped
    """A cache whose faults cost time, and no more.

    Compiled code contains that of the functions it calls, and the numbers and layouts of records
    that its module takes from others. numba looks at the function's own file only, so code of
    before would run on after one of those was changed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        index = self._cache_file
        parts = (index._source_stamp, *_stamps_of_others(function))
        self.stamp = hashlib.sha256(repr(parts).encode()).hexdigest()
        index._source_stamp = self.stamp

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a file that is damaged can raise whatever unpickling it does
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self.disable()
            _warn(error)


def _stamps_of_others(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """What a function's module has from others, by name: compiled functions by their stamps,
    records by their fields, and numbers.
    """
    for name, value in sorted(function.__globals__.items()):
        cache = getattr(value, "_cache", None)
        if isinstance(cache, _Cache):
            yield name, cache.stamp
        elif isinstance(value, type) and hasattr(value, "_fields"):
            yield name, value._fields
        elif isinstance(value, int | float):
            yield name, value


def _warn(error: Exception) -> None:
    why = getattr(error, "strerror", None) or first_line(error)
    warnings.warn(
        f"compiled functions cannot be kept, so every start compiles anew: {why}",
        RuntimeWarning,
        stacklevel=2,
    )
