"""Functions compiled by numba, with an optional cache on disk.

Compiled code is cached in the user's cache folder by the sources it was compiled from, so that
another clone, environment or installed wheel of the same sources finds it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    _CacheLocator,
)

from simulator.base.caches import compiled_folder, say_compiling
from simulator.base.errors import UserError
from simulator.base.text import first_line

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
_DIGEST_BYTES = 32
_jit = partial(numba.njit, no_cfunc_wrapper=True)  # nobody calls them from C


def jit(function: Compiled) -> Compiled:
    """Compile the function at its first call, and cache it for later processes where that is
    possible.

    ``numba.njit(cache=True)`` raises where its cache is full, damaged or cannot be written; this
    compiles anew.
    """
    return _compile(function, _jit(function))


def jit_inner(function: Compiled) -> Compiled:
    """Compile the function as :func:`jit` does, for one that allocates no array and returns none:
    it borrows the arrays that it is given.

    Otherwise compiled code counts references to every array in every tuple at every call, which
    takes four times as long as the work of a step of the engine (measured: 830 against 190 ns for
    its price). An array that would be allocated is an error when it is compiled.

    Machine code of callers contains that of the function: by itself LLVM refuses where tuples of
    arrays are long argument lists, which are copied at every call then (measured: half of the time
    of the engine's loop).

    What unpacks Python's arguments is compiled where Python calls it: for one that only compiled
    code calls it would take a quarter of compiling.
    """
    return _borrow(function, inline="never")


def jit_inline(function: Compiled) -> Compiled:
    """Compile the function as :func:`jit_inner` does, for a long one with a single caller.

    It is written into that before types are found, and is not compiled by itself besides: each of
    a chain of such functions would contain the code of all below it.
    """
    return _borrow(function, inline="always")


def jit_apart(function: Compiled) -> Compiled:
    """Compile the function as :func:`jit_inner` does, for one that few runs call: its callers do
    not contain its code.
    """
    return _borrow(function, inline="never", is_apart=True)


def _borrow(function: Compiled, inline: str, is_apart: bool = False) -> Compiled:
    options = {"_nrt": False, "forceinline": not is_apart, "inline": inline}
    inner = _compile(function, _jit(no_cpython_wrapper=True, **options)(function))
    if hasattr(inner, "py_func"):
        _open_to_python(inner, function)
    return inner


def _open_to_python(inner: Any, function: Callable[..., Any]) -> None:
    """Let Python call another dispatcher of the function, whose code unpacks arguments. Later calls
    find the compiled code without it.
    """

    @cache
    def make_called() -> Any:
        called: Any = _compile(function, _jit(_nrt=False)(function))
        keep = called.add_overload

        def add(found: Any) -> None:
            keep(found)
            kinds = [kind._code for kind in found.signature.args]
            inner._insert(kinds, found.entry_point, found.objectmode)

        called.add_overload = add
        return called

    def add_inner(found: Any) -> None:
        inner.overloads[tuple(found.signature.args)] = found

    inner.add_overload = add_inner
    inner._compile_for_args = lambda *arguments: make_called()._compile_for_args(*arguments)


def _compile(function: Compiled, dispatcher: Any) -> Compiled:
    if hasattr(dispatcher, "py_func"):  # not where NUMBA_DISABLE_JIT is set
        dispatcher.get_call_template = _widen_literals(dispatcher.get_call_template)
        try:
            dispatcher._cache = _Cache(function, dispatcher.targetoptions)
        except (OSError, RuntimeError, UserError) as error:  # no folder that it could be in
            _warn(error)
    compiled_function: Compiled = dispatcher
    return compiled_function


def _widen_literals(get_call_template: Callable[..., Any]) -> Callable[..., Any]:
    """Treat literal numbers in calls like any other number: numba would compile the function once
    more for each.
    """

    def widen(args: Any, kws: Any) -> Any:
        return get_call_template(
            tuple(types.unliteral(one) for one in args),
            {name: types.unliteral(one) for name, one in kws.items()},
        )

    return widen


class _Locator(_CacheLocator):  # type: ignore[misc]  # untyped
    """Cache locator in the user's folder, by the sources that a function is compiled from.

    Compiled code contains that of the functions it calls, and the numbers and layouts of records
    that its module takes from others. numba looks at the function's own file only, so code of
    before would run on after one of those was changed.
    """

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file  # numba names it in warnings
        parts = ("digests", numba.__version__, _read_digest(file), *_stamps_of_others(function))
        self.stamp = hashlib.sha256(repr(parts).encode()).hexdigest()

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        locator = cls(function, file)
        locator.ensure_cache_path()
        return locator

    def get_cache_path(self) -> str:
        return str(compiled_folder())

    def get_source_stamp(self) -> str:
        return self.stamp

    def get_disambiguator(self) -> str:
        return self.stamp[:16]


class _Impl(CompileResultCacheImpl):  # type: ignore[misc]  # untyped
    _locator_classes = [_Locator]


class _Files(IndexDataCacheFile):  # type: ignore[misc]  # untyped
    """Files that begin with the digest of what follows: machine code with a flipped bit would be
    run, and end the process in a segmentation fault.
    """

    def _load_index(self) -> dict[Any, str]:
        try:
            stamp, overloads = self._load_data(self._index_name)
        except FileNotFoundError:
            return {}
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._save_data(self._index_name, (self._source_stamp, overloads))

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        """Save an entry in a file named after its key, which processes that compile different
        signatures at once do not take for each other's.
        """
        name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16))
        self._save_index({**self._load_index(), key: name})
        self._save_data(name, data)

    def _load_data(self, name: str) -> Any:
        content = memoryview(Path(self._data_path(name)).read_bytes())
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise OSError(f"{name} is damaged")  # of an entry, read as if it were not there
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)


class _Cache(FunctionCache):  # type: ignore[misc]  # untyped
    """Cache whose failures cost time only: a damaged or unwritable one compiles anew."""

    _impl_class = _Impl

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self.stamp)
        self._options = tuple(sorted(options.items()))

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return *super()._index_key(sig, codegen), self._options

    @property
    def stamp(self) -> str:
        """Digest of the sources that the function is compiled from."""
        stamp: str = self._impl.locator.stamp
        return stamp

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a file that is damaged can raise whatever unpickling it does
            found = None
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            say_compiling()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except (OSError, RuntimeError) as error:  # or its machine code cannot be read back
            self.disable()
            _warn(error)


@cache
def _read_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _stamps_of_others(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """Names that a function's module takes from others, with their digests: compiled functions by
    their stamps, records by their fields, and numbers by value.
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
    _warn_once(getattr(error, "strerror", None) or first_line(error))


@cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"compiled functions cannot be kept, so every start compiles anew: {why}",
        RuntimeWarning,
        stacklevel=3,
    )
