"""Plug-ins by file name: ``simulator/policies/routing/zipf.py`` holds one frozen model, and ``kind
= "zipf"`` selects it.

There is no registry: a file that appears in a family's folder is found. A kind with a dot in it
(``"my_package.my_policy"``) loads a user's own module, if :mod:`simulator.base.trust` allows it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from simulator.base import trust
from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import Frozen, validate
from simulator.base.text import shorten

_CHECKED: dict[tuple[str, str], type[Frozen]] = {}
"""Shipped policies by family and kind whose protocol was checked: a plan builds them ten thousand
times."""


_ROOMS = (
    *("simulator.policies", "simulator.workload", "simulator", "simulator.config", "simulator.lab"),
)
"""Packages that hold families."""


@cache
def _find_folder(family: str) -> tuple[str, Path]:
    """Module name and folder of a family's package, which is not imported."""
    for room in _ROOMS:
        for place in importlib.import_module(room).__path__:
            folder = Path(place, *family.split("."))
            if (folder / "__init__.py").is_file():
                return f"{room}.{family}", folder
    raise ModuleNotFoundError(f"no room holds the family '{family}'")


def package_of(family: str) -> ModuleType:
    """Import the package of ``family`` (such as ``"routing"`` or ``"cost.comm"``): its files are
    its kinds, its protocol is their interface.

    Raises:
        ModuleNotFoundError: if no room holds it, which is a defect.
    """
    return importlib.import_module(_find_folder(family)[0])


@cache
def kind_files(family: str) -> dict[str, Path]:
    """Map the kinds of ``family`` (such as ``"routing"`` or ``"cost.comm"``) to their files: all in
    its folder but those that begin with ``_``. Nothing is imported.
    """
    name, folder = _find_folder(family)
    package = sys.modules.get(name)  # which may have been given folders
    found: dict[str, Path] = {}
    for place in map(Path, [folder] if package is None else package.__path__):
        found |= {path.parent.name: path for path in place.glob("[!_]*/__init__.py")}
        found |= {path.stem: path for path in place.glob("[!_]*.py")}
    return dict(sorted(found.items()))


def available(family: str) -> tuple[str, ...]:
    """List the kinds of ``family``, by name."""
    return tuple(kind_files(family))


def load_kind(family: str, kind: str) -> ModuleType:
    """Import the file of a shipped kind."""
    return importlib.import_module(f"{package_of(family).__name__}.{kind}")


def policy_class(family: str, kind: str, where: str) -> type[Frozen]:
    """Find the one public :class:`Frozen` that the file of ``kind`` defines.

    Args:
        where: the file (and section) that errors name.

    Raises:
        UserError: as :func:`find_class` says.
    """
    try:
        return find_class(family, kind)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error.__cause__


def find_class(family: str, kind: str) -> type[Frozen]:
    """Find the class of a kind as :func:`policy_class` does; its errors leave the place to the
    caller.

    Raises:
        UserError: if there is no such kind, or a user's module cannot be imported, defines none or
            several, or its class lacks what the family's protocol asks for; or its code needs
            ``--allow-code``.
    """
    if (family, kind) in _CHECKED:
        return _CHECKED[family, kind]
    if "." in kind:
        module = _user_module(family, kind)
    elif kind in available(family):
        module = load_kind(family, kind)
    else:
        raise UserError(
            f"unknown {family} kind '{shorten(kind)}'; {did_you_mean(kind, available(family))}"
        )
    classes = [
        member
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, Frozen)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    ]
    if len(classes) != 1:
        found = f"found {', '.join(cls.__name__ for cls in classes) or 'none'}"
        raise UserError(
            f"{family} kind '{kind}' ({module.__file__}) must define exactly one public "
            f"class derived from simulator.base.frozen.Frozen, {found}"
        )
    lacking = _lacking(classes[0], _protocol(family))
    if lacking:
        raise UserError(
            f"{family} kind '{kind}' ({module.__file__}): {classes[0].__name__} {lacking}"
        )
    if "." not in kind:
        _CHECKED[family, kind] = classes[0]
    return classes[0]


def _user_module(family: str, kind: str) -> ModuleType:
    trust.admit(kind, f"{family} kind '{kind}'")
    try:
        return importlib.import_module(kind)
    except Exception as error:  # whatever is wrong with it is the user's to mend
        raise UserError(
            f"cannot import {family} kind '{kind}': {type(error).__name__}: {error}"
        ) from error


@cache
def _protocol(family: str) -> type:
    """Find the interface of a family's files: the one public protocol or abstract model in its
    package, or the ``...Policy`` where there are several.
    """
    package = package_of(family)
    protocols = [
        member
        for name, member in vars(package).items()
        if isinstance(member, type)
        and (getattr(member, "_is_protocol", False) or inspect.isabstract(member))
        and member.__module__ == package.__name__
        if not name.startswith("_")
    ]
    return (
        protocols[0]
        if len(protocols) == 1
        else next(cls for cls in protocols if cls.__name__.endswith("Policy"))
    )


def _lacking(cls: type[Frozen], protocol: type) -> str:
    """Say what ``cls`` lacks of ``protocol``; empty where it lacks nothing."""
    if inspect.isabstract(protocol):
        return _find_abstract(cls, protocol)
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    for name in dict.fromkeys(
        name for base in bases for name in (*vars(base), *inspect.get_annotations(base))
    ):
        if name.startswith("_"):
            continue
        wanted, found = getattr(protocol, name, None), getattr(cls, name, None)
        if not inspect.isfunction(wanted):
            if not hasattr(cls, name) and name not in cls.model_fields:
                return f"must have an attribute '{name}'"
            continue
        if not callable(found):
            return f"must have a method {_call(name, wanted)}"
        try:
            inspect.signature(found).bind(*inspect.signature(wanted).parameters)
        except TypeError:
            return f"must have a method {_call(name, wanted)}; its own is {_call(name, found)}"
    return ""


def _find_abstract(cls: type[Frozen], base: type) -> str:
    """Say what ``cls`` leaves abstract of ``base``; empty where it leaves nothing."""
    if not issubclass(cls, base):
        return f"must be derived from {base.__module__}.{base.__name__}"
    for name in sorted(cls.__abstractmethods__):
        wanted = getattr(base, name)
        if inspect.isfunction(wanted):
            return f"must have a method {_call(name, wanted)}"
        return f"must have an attribute '{name}'"
    return ""


def _call(name: str, function: Callable[..., object]) -> str:
    """Write a method with its arguments, as it is called."""
    return f"{name}({', '.join(list(inspect.signature(function).parameters)[1:])})"


def build(family: str, table: Mapping[str, object], where: str) -> Any:
    """Build the policy that a ``{ kind = "...", ... }`` table names; its other keys are the
    policy's fields.

    Raises:
        UserError: if the kind is missing or unknown, or a field is wrong.
    """
    fields = dict(table)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{where}: missing key 'kind'; {did_you_mean('', available(family))}")
    return validate(policy_class(family, kind, where), fields, where)
