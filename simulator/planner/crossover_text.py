"""Where the winner of a crossover map changes, in sentences, from the map's rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from simulator.results.formats import TIMES, number
from simulator.results.plan_text import doubt, is_clear

Row = dict[str, Any]


def flips(found: Row) -> list[str]:
    """Along loads, times per token, lengths, the network's speed and expert-parallel sizes; the
    network as it is unless said.

    What never changes is said too, where it is one load or one time per token after the other. A
    ratio that the map marks as uncertain carries the same mark.
    """
    said: list[str] = []
    for moe in found["models"]["moe"]:
        for dense in found["models"]["dense"]:
            pair = f"{moe} against {dense}"
            rows = {
                name: [row for row in found[name] if (row["moe"], row["dense"]) == (moe, dense)]
                for name in ("cells", "at_same_time", "at_full_load")
            }
            said += [f"{pair}, {text}" for text in _of_pair(rows)]
    return said


def _of_pair(rows: dict[str, list[Row]]) -> list[str]:
    best = [row for row in rows["at_same_time"] if row["gpus"] is None]
    usual = [row for row in best if row["network"] == 1.0]
    loads = _best_ep([row for row in rows["cells"] if row["network"] == 1.0])
    said = [
        *_along(
            loads, "batch_per_gpu", lambda value: f"{value:g} sequences a GPU", "at the same load"
        ),
        *_along(
            usual,
            "time_per_token_s",
            lambda value: f"{value * 1000:g} ms a token",
            "at the same time per token",
        ),
    ]
    full = [row for row in rows["at_full_load"] if row["network"] == 1.0]
    for pairing, part in _groups(full, lambda row: (row["gpus"] or 0,)):
        where = "at full load" if not pairing[0] else f"at full load with TP {pairing[0]} on both"
        said += _between_lengths(part, where)
    said += _flipped(
        _best_ep(rows["cells"]), "network", lambda value: f"{value:g}{TIMES} the network"
    )
    said += _flipped(
        [row for row in rows["cells"] if row["network"] == 1.0],
        "ep",
        lambda value: f"EP {value:g}" if value > 1 else "no EP",
    )
    return said


def _along(rows: list[Row], axis: str, text: Callable[[float], str], where: str) -> list[str]:
    """One sentence for requests of one length: who wins up to where."""
    said = []
    for (num_input, num_output), part in _groups(rows, lambda row: (row["input"], row["output"])):
        decided = [row for row in part if row["winner"] is not None]
        if not decided:
            continue
        stretches = [
            (name, list(here)) for name, here in groupby(decided, key=lambda row: row["winner"])
        ]
        place = f"{lengths(num_input, num_output)} {where}"
        if len(stretches) == 1:
            said.append(f"{place}: {stretches[0][0]} wins throughout ({_range(decided)})")
            continue
        parts = [
            (
                f"{name} {'up to' if n == 0 else 'from'} "
                f"{text(here[-1][axis] if n == 0 else here[0][axis])} ({_range(here)})"
            )
            for n, (name, here) in enumerate(stretches)
        ]
        said.append(f"{place}: " + ", ".join(parts))
    return said


def _between_lengths(rows: list[Row], where: str) -> list[str]:
    """One sentence where the winner depends on the requests' lengths."""
    decided = [row for row in rows if row["winner"] is not None and row["ratio"] is not None]
    if len({row["winner"] for row in decided}) < 2:
        return []
    parts = [
        (
            f"{row['winner']} at {lengths(row['input'], row['output'])} "
            f"({_ratio(row)}, {row['deciding_term']})"
        )
        for row in decided
    ]
    return [f"{where}: " + ", ".join(parts)]


def _flipped(rows: list[Row], axis: str, text: Callable[[float], str]) -> list[str]:
    """One sentence for every length and load at which the winner depends on the axis."""
    said = []
    for (num_input, num_output, batch), part in _groups(
        rows, lambda row: (row["input"], row["output"], row["batch_per_gpu"])
    ):
        decided = [row for row in part if row["winner"] is not None and row["ratio"] is not None]
        if len({row["winner"] for row in decided}) < 2:
            continue
        parts = [f"{row['winner']} with {text(row[axis])} ({_ratio(row)})" for row in decided]
        said.append(
            f"{lengths(num_input, num_output)} at {batch:g} sequences a GPU: " + ", ".join(parts)
        )
    return said


def _best_ep(cells: list[Row]) -> list[Row]:
    """The cells of the expert-parallel size that makes most, at each place."""
    return [
        max(part, key=lambda row: row["moe_tokens_per_s_gpu"] or 0.0)
        for _, part in _groups(
            cells, lambda row: (row["input"], row["output"], row["network"], row["batch_per_gpu"])
        )
    ]


def _groups(
    rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]
) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows with the same key, in the order in which they stand."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def _range(rows: list[Row]) -> str:
    """MoE's tokens over the dense model's, what decides most often, and at how many of several
    places the winner is not sure.
    """
    known = [row for row in rows if row["ratio"] is not None]
    terms = [row["deciding_term"] for row in rows if row["deciding_term"] is not None]
    term = max(dict.fromkeys(terms), key=terms.count)
    if not known:
        return f"the other cannot: {term}"
    if len(known) == 1:
        return f"{_ratio(known[0])}, {term}"
    low, high = (number(pick(row["ratio"] for row in known)) for pick in (min, max))
    narrow = sum(not is_clear(row) for row in known)
    unsure = f", either may win (?) at {narrow} of {len(rows)} places" if narrow else ""
    return f"{low if low == high else f'{low} to {high}'}{TIMES}, {term}{unsure}"


def _ratio(row: Row) -> str:
    """The ratio of one place as the map has it."""
    return f"{number(row['ratio'])}{TIMES}{doubt(row)}"


def lengths(num_input: int, num_output: int) -> str:
    """Prompt and output tokens.

    >>> lengths(1024, 8192), lengths(1000, 500)
    ('1k/8k', '1000/500')
    """
    return "/".join(
        f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
        for tokens in (num_input, num_output)
    )
