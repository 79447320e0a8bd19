"""Catalogue of data files and policies, found by looking in their folders."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

from simulator.base.data import available_files
from simulator.base.errors import UserError, check_known
from simulator.base.plugins import kind_files
from simulator.base.reading import read_text, read_toml
from simulator.config.cluster import available_clusters

_DATA = {
    "scenarios": "workloads",
    "plans": "workloads/plans",
    "trainings": "workloads/training",
    "training_plans": "workloads/training_plans",
    "workloads": "workloads/requests",
    "models": "workloads/models",
    "laws": "workloads/laws",
    "claims": "workloads/claims",
    "accelerators": "cluster_configs/accelerators",
    "calibrations": "cluster_configs/calibration",
    "engines": "cluster_configs/engines",
    "clusters": "cluster_configs",
}
POLICIES = {
    "mixers": "mixers",
    "ffns": "ffns",
    "equal": "deployment.equal",
    "routing": "routing",
    "placement": "placement",
    "replica_choice": "replica_choice",
    "spilling": "spilling",
    "reduction": "reduction",
    "overflow": "overflow",
    "dispatch": "dispatch",
    "topology": "topology",
    "scheduling": "scheduling",
    "order": "order",
    "kv_tiers": "kv_tiers",
    "balancing": "balancing",
    "failures": "failures",
    "rebalancing": "rebalancing",
    "recovery": "recovery",
    "scaling": "scaling",
    "speculation": "speculation",
    "caching": "caching",
    "prefetching": "prefetching",
    "pipelining": "pipelining",
    "arrivals": "arrivals",
    "lengths": "lengths",
    "traces": "traces",
    "compute": "cost.compute",
    "communication": "cost.comm",
    "figures": "report.figures",
    "kernels": "validation.kernels",
}
"""Families of one kind a file: as ``list`` calls them, and as their packages are called."""


def list_kinds(family: str | None = None) -> dict[str, dict[str, str]]:
    """List the entries of each family, each with a line that describes it: data files by name, and
    policies by kind.

    Args:
        family: one family, such as ``models``, ``clusters`` or ``routing``; ``None`` = all.

    Raises:
        UserError: if there is no such family.

    >>> list(list_kinds("overflow")["overflow"])
    ['capacity', 'none', 'top_k']
    """
    known = (*_DATA, *POLICIES)
    if family is None:
        return {name: _list_family(name) for name in known}
    check_known(family, known, "list: unknown family")
    return {family: _list_family(family)}


def list_files(family: str) -> dict[str, Path]:
    """List the files of a family of data by name.

    Raises:
        UserError: if there is no such family.
    """
    check_known(family, _DATA, "list: unknown family")
    return available_files(_DATA[family])


def _list_family(family: str) -> dict[str, str]:
    if family == "clusters":
        return _list_clusters()
    if family in _DATA:
        return {name: _read_headline(path) for name, path in list_files(family).items()}
    package = POLICIES[family]
    return {kind: describe_kind(package, kind) for kind in kind_files(package)}


def _read_headline(path: Path) -> str:
    """Title of a file, or the reason why it cannot be read: the others are still there to choose
    from.
    """
    try:
        table = read_toml(path)
    except UserError as error:
        return f"cannot be read: {error}"
    title = str(table.get("title") or table.get("name") or path.stem)
    return (
        f"{title} (rumour)" if table.get("is_rumour") and "rumour" not in title.lower() else title
    )


def _list_clusters() -> dict[str, str]:
    """Clusters by family, the sizes together: naming all would fill pages."""
    files = available_files("cluster_configs")
    names = available_clusters()
    found = {}
    for stem, path in files.items():
        sizes = [
            int(name.removeprefix(f"{stem}-"))
            for name in names
            if name.startswith(f"{stem}-") and name.removeprefix(f"{stem}-").isdecimal()
        ]
        if stem in names or not sizes:
            found[stem] = _read_headline(path)
        if sizes:
            found[f"{stem}-N"] = f"{_read_headline(path)}; N = {_describe_sizes(sizes)}"
    return found


def _describe_sizes(sizes: list[int]) -> str:
    """Sizes in words, a long even tail shortened.

    >>> _describe_sizes([1, 2, 4, 8, 16, 24, 32, 40])
    '1, 2, 4, 8, 16, ..., 40'
    """
    first = len(sizes) - 1
    while (
        first > 0 and len({after - before for before, after in pairwise(sizes[first - 1 :])}) == 1
    ):
        first -= 1
    shown = [str(size) for size in sizes]
    if len(sizes) - first > 4:
        shown = [*shown[: first + 2], "...", shown[-1]]
    return ", ".join(shown)


def describe_kind(family: str, kind: str) -> str:
    """First paragraph of the file of a kind, which is read, not imported: packages that it needs
    need not be installed.
    """
    text = ast.get_docstring(ast.parse(read_text(kind_files(family)[kind]))) or ""
    return " ".join(text.split("\n\n")[0].split())
