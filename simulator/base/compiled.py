"""Functions that numba compiles, with a cache on disk that they can do without."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
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
    """A cache whose faults cost time, and no more."""

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


def _warn(error: Exception) -> None:
    why = getattr(error, "strerror", None) or first_line(error)
    warnings.warn(
        f"compiled functions cannot be kept, so every start compiles anew: {why}",
        RuntimeWarning,
        stacklevel=2,
    )
