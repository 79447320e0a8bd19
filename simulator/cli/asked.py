"""Options that ask for a plan or a run of requests of one length, and the file that they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from simulator.base.errors import UserError
from simulator.cli import console

Models = Annotated[str | None, console.option("Models, without a file.", "A,B")]
Cluster = Annotated[str | None, console.option("Kinds of machines; of a run one.", "A,B")]
Rate = Annotated[float | None, console.option("Requests a second.", "N")]
Input = Annotated[int | None, console.option("Tokens of each prompt.", "N", flag="--input")]
Output = Annotated[int | None, console.option("Tokens of each answer.", "N", flag="--output")]
Ttft = Annotated[
    str | None,
    console.option(
        "Limit on the time to first token: 1.5 (in a plan that of p95), and in a plan "
        "p50=0.5,p95=1.5 too.",
        "S",
    ),
]
Tpot = Annotated[str | None, console.option("Limit on the time per output token, likewise.", "S")]
_HEAD = "Asked on the command line: requests of one length."
"""First line of a file that options made, which others may replace."""


class Asked(NamedTuple):
    """Values of the options; ``None`` where one is not given."""

    models: str | None
    cluster: str | None
    rate: float | None
    input: int | None
    output: int | None
    ttft: str | None
    tpot: str | None


def write_asked(
    command: str,
    folder: Path,
    asked: Asked,
    make: Callable[..., dict[str, Any]],
) -> str:
    """Write the file that options ask for, which the same command takes, and return its path.

    Args:
        command: ``plan`` or ``run``.
        folder: of the results, beside which the file is written.
        make: makes its keys of models, cluster, rate, lengths of prompts and answers, and limits by
            latency (``ttft_s``).

    Raises:
        UserError: naming the options that are missing, or what is wrong with what they ask.
    """
    from simulator.base.partial import whole_file
    from simulator.base.reading import read_bytes
    from simulator.base.writing import toml_text
    from simulator.scenario.jobs import QUESTIONS, SCENARIOS, load_job

    *needed, ttft, tpot = asked
    missing = [
        f"--{name}" for name, value in zip(asked._fields, needed, strict=False) if value is None
    ]
    limits = {key: text for key, text in (("ttft_s", ttft), ("tpot_s", tpot)) if text is not None}
    if missing or not limits:
        raise UserError(
            f"{command} needs a file, or a question by options; missing: "
            + ", ".join([*missing, *(() if limits else ("--ttft or --tpot",))])
        )
    table, file = make(*needed, limits), Path(f"{folder}.toml")
    load_job(table, (*SCENARIOS, *QUESTIONS))
    if file.exists() and not read_bytes(file).startswith(f"# {_HEAD}".encode()):
        raise UserError(f"{file}: is no file of options; name another --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        partial.write_text(toml_text(table, _HEAD), encoding="utf-8")
    console.err.say(f"{'question' if command == 'plan' else 'scenario'}: {file}")
    return str(file)


def refuse_beside(command: str, asked: Asked) -> None:
    """Refuse options of a question beside a file.

    Raises:
        UserError: naming the first one.
    """
    console.refuse_options(
        f"is for a {command} without a file; change a file's keys by --set",
        **{name: value is not None for name, value in asked._asdict().items()},
    )
