"""File name = plug-in name: ``simulator/routing/zipf.py`` holds one frozen model, and ``kind = "zipf"`` selects it.

There is no registry: a file that appears in a family's folder is found. A kind with a dot in it (``"my_package.my_policy"``)
loads a user's own module.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from simulator.errors import UserError, did_you_mean
from simulator.spec.base import Frozen, validate


@cache
def available(family: str) -> tuple[str, ...]:
    """The kinds of ``family`` (such as ``"routing"`` or ``"cost.comm"``): its files, less those that begin with ``_``."""
    package = importlib.import_module(f"simulator.{family}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def policy_class(family: str, kind: str, where: str) -> type[Frozen]:
    """The one public :class:`Frozen` that the file of ``kind`` defines.

    Raises:
        UserError: if there is no such kind, or a user's module cannot be imported or defines none or several.
    """
    if "." in kind:
        try:
            module = importlib.import_module(kind)
        except ImportError as error:
            raise UserError(f"{where}: cannot import {family} kind '{kind}': {error}") from error
    elif kind in available(family):
        module = importlib.import_module(f"simulator.{family}.{kind}")
    else:
        raise UserError(f"{where}: unknown {family} kind '{kind}'; {did_you_mean(kind, available(family))}")
    classes = [
        member
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, Frozen)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    ]
    if len(classes) != 1:
        raise UserError(f"{where}: {family} kind '{kind}' must define exactly one policy class, found {len(classes)}")
    return classes[0]


def build(family: str, table: Mapping[str, Any], where: str) -> Any:
    """Build the policy that a ``{ kind = "...", ... }`` table names; its other keys are the policy's fields.

    Raises:
        UserError: if the kind is missing or unknown, or a field is wrong.
    """
    fields = dict(table)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{where}: missing key 'kind'; {did_you_mean('', available(family))}")
    return validate(policy_class(family, kind, where), fields, where)
