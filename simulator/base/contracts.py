"""Checks of user policies: each return value is checked against its family's contract when it is
returned.

Policies of the project have contract tests and are not checked again; a user's own are, so that
their mistakes are reported as theirs and not found later as defects of ours.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard, TypeVar, TypeVarTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError, did_you_mean

_PROJECT = Path(__file__).parents[1]
_LIBRARY = Path(sysconfig.get_path("stdlib"))

Asked = TypeVar("Asked")
Found = TypeVar("Found")
Arguments = TypeVarTuple("Arguments")
Value = TypeVar("Value")


class Attributes(dict[str, Value]):
    """Further columns of a trace by name, which a user's own policy may ask for in vain."""

    def __missing__(self, name: str) -> Value:
        raise UserError(
            f"the requests have no column '{name}' of numbers or short texts beside those that "
            f"requests always have: {did_you_mean(name, self)}"
        )


def ask(
    method: Callable[[Asked, *Arguments], Found],
    policy: Asked,
    *arguments: *Arguments,
    explain: Callable[[object], str],
) -> Found:
    """Call a method of a policy and return its checked result.

    Args:
        method: of the policy's interface: ``PlacementPolicy.place``.
        explain: describes what a wrong return value must be instead; empty for a right
            one.

    Raises:
        UserError: if the policy is a user's own, and fails or returns something else.
    """
    call: Callable[[*Arguments], Found] = getattr(policy, method.__name__)
    if is_shipped(type(policy)):
        return call(*arguments)
    return check_call(method_name(policy, method.__name__), lambda: call(*arguments), explain)


def check_call(name: str, call: Callable[[], Found], explain: Callable[[object], str]) -> Found:
    """Call a user's own function and return its checked result.

    Args:
        name: of the function, in errors.
        explain: as in :func:`ask`.

    Raises:
        UserError: if it fails or returns something else.
    """
    try:
        found = call()
        wanted = explain(found)
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with it is the user's to mend
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} failed{_place_of(error)}: {said}") from error
    if wanted:
        raise UserError(f"{name} must return {wanted}; returned {describe_value(found)}")
    return found


def method_name(policy: object, method: str) -> str:
    """Name a policy's method in errors: ``my_package.my_policy.Neighbours.place()``."""
    return f"{type(policy).__module__}.{type(policy).__qualname__}.{method}()"


def is_shipped(cls: type) -> bool:
    """Whether the class of a policy, or of what it prepared, is the project's own."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def is_array(
    found: object, shape: tuple[int | None, ...], *, whole: bool
) -> TypeGuard[NDArray[np.number]]:
    """Whether something is an array of finite numbers.

    Args:
        shape: expected shape; ``None`` stands for any number of entries.
        whole: whether only whole numbers are right.
    """
    if not isinstance(found, np.ndarray) or found.ndim != len(shape):
        return False
    fits = all(size in (None, own) for size, own in zip(shape, found.shape, strict=True))
    return (
        fits and found.dtype.kind in ("iu" if whole else "iuf") and bool(np.isfinite(found).all())
    )


def has_method(method: str) -> Callable[[object], str]:
    """Make a check that an object has a method of that name, such as the one
    ``prepare`` returns.
    """
    wanted = f"an object with {method}()"
    return lambda found: "" if callable(getattr(found, method, None)) else wanted


def _place_of(error: Exception) -> str:
    """Name the last line of the user's own code, else of any, that an error passed through."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__
    ]
    own = [frame for frame in frames if not _is_installed(Path(frame.filename))] or frames
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _is_installed(file: Path) -> bool:
    """Whether a file is part of the project, of Python (frozen modules have no file, but a name
    such as ``<frozen abc>``), or of an installed package.
    """
    shipped = {_PROJECT, _LIBRARY} & {*file.parents}
    return bool(shipped) or "site-packages" in file.parts or not file.is_absolute()


def describe_value(found: object) -> str:
    """Describe a value that a user's own code returned, briefly."""
    if isinstance(found, np.ndarray):
        has_range = found.size and found.dtype.kind in "iuf"
        values = f" from {found.min():g} to {found.max():g}" if has_range else ""
        return f"{found.dtype} of shape {found.shape}{values}"
    text = " ".join(repr(found).split())
    return f"{type(found).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
