"""Findings: what there is to say, as a kind and its numbers.

``findings.toml`` has the sentence of each kind, a template of Jinja2, in one table, how much some
kinds matter, and the sections of pages that show more of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.base import formats
from simulator.base.reading import read_toml

if TYPE_CHECKING:
    from jinja2 import Environment

TABLE = Path(__file__).with_name("findings.toml")
LEVELS = ("warning", "finding", "detail")
"""Severities, what a reader must know first."""


class Finding:
    """Something to say, whose text is its sentence."""

    def __init__(self, kind: str, /, **facts: object) -> None:
        """Find something.

        Args:
            kind: ``section.row`` of the table.
            facts: names, and numbers in SI units, by their names in the sentence.
        """
        self.kind, self.facts = kind, facts

    def __str__(self) -> str:
        return environment().get_template(self.kind).render(self.facts)

    @property
    def severity(self) -> str:
        """One of :data:`LEVELS`; a detail where the condition of its rule does not hold."""
        level, _, condition = _read_table("severity").get(self.kind, "finding").partition(" if ")
        if not condition or environment().compile_expression(condition)(**self.facts):
            return level
        return "detail"

    @property
    def section(self) -> str:
        """Title of the section of a page that shows more of it; empty where there is none."""
        shown = _read_table("section")
        return shown.get(self.kind) or shown.get(self.kind.partition(".")[0], "")

    def __repr__(self) -> str:
        return f"Finding({self.kind!r}, {self.facts!r})"


class Said(Finding):
    """A sentence of its own, such as a claim."""

    def __init__(self, sentence: str) -> None:
        super().__init__("said", sentence=sentence)

    def __str__(self) -> str:
        return str(self.facts["sentence"])


def tell(findings: Iterable[Finding]) -> list[str]:
    """Write each finding once, in their order."""
    return list(dict.fromkeys(map(str, findings)))


def rank(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity; those alike keep their order."""
    return sorted(findings, key=lambda one: LEVELS.index(one.severity))


def plural(number: float, one: str, many: str = "") -> str:
    """Choose a noun or a verb by a number.

    >>> plural(1, "request"), plural(2, "request"), plural(2, "is", "are")
    ('request', 'requests', 'are')
    """
    return one if number == 1 else many or f"{one}s"


@cache
def environment() -> Environment:
    """The environment of all sentences, which refuses facts that are not given."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    made = Environment(loader=DictLoader(sentences()), undefined=StrictUndefined)
    made.globals.update(TIMES=formats.TIMES)

    def each(values: Mapping[str, float], write: str) -> str:
        """Numbers by name: one by itself, of more than two the ends, of those alike the least."""
        names = sorted(values, key=values.__getitem__)
        shown = list(values) if len(names) < 3 else [names[0], names[-1]]
        if values[names[-1]] <= 1.005 * values[names[0]]:
            shown = names[:1]
        texts = {name: made.filters[write](values[name]) for name in shown}
        if len(set(texts.values())) == 1:
            return str(texts.popitem()[1])
        joined = " to " if len(names) > len(texts) else ", "
        return joined.join(f"{text} ({name})" for name, text in texts.items())

    made.filters.update(
        each=each,
        f=format,
        amount=formats.amount,
        batched_tokens=formats.batched_tokens,
        chance=formats.chance_text,
        count=formats.count,
        gain=formats.gain_text,
        k_tokens=formats.k_tokens,
        num_bytes=formats.num_bytes,
        nines=formats.nines,
        number=formats.number,
        odds=formats.chance,
        parameters=formats.parameters,
        percent=formats.percent,
        plural=plural,
        share=formats.share_text,
        seconds=formats.seconds,
        seconds_text=formats.seconds_text,
        times=formats.times,
    )
    return made


@cache
def sentences() -> dict[str, str]:
    """Read the table: sentences by kind, each in one line."""
    return {
        f"{section}.{name}": " ".join(text.split())
        for section, rows in read_toml(TABLE).items()
        if section not in ("severity", "section")
        for name, text in rows.items()
    }


@cache
def _read_table(name: str) -> dict[str, str]:
    found: dict[str, str] = read_toml(TABLE)[name]
    return found
