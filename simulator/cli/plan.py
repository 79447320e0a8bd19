"""``moesim plan``: the cheapest deployment that meets the targets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from simulator.base.text import one_line
from simulator.cli import asked, console

if TYPE_CHECKING:
    from simulator.base.progress import Progress
    from simulator.config.training_question import TrainingQuestion
    from simulator.planner.store import Store
    from simulator.results.answer import Answer
    from simulator.results.training_answer import TrainingAnswer

NOTHING_MEETS = 3
"""Exit status where the question was answered, and the answer is that nothing meets the targets
within the limits."""
_RUNNERS_UP = 4
_REASONS = 5
_NARROWEST = 26
"""Columns that a deployment's text must have beside the numbers; with fewer it stands above
them."""


def plan(
    question: Annotated[
        str | None,
        console.argument(
            "A plan's TOML file, or the name of a shipped one; or ask by the options below."
        ),
    ] = None,
    models: asked.Models = None,
    cluster: asked.Cluster = None,
    rate: asked.Rate = None,
    num_input: asked.Input = None,
    num_output: asked.Output = None,
    ttft: asked.Ttft = None,
    tpot: asked.Tpot = None,
    out_folder: console.Out = None,
    seed: console.Seed = None,
    overrides: console.Set = None,
    allow_code: console.AllowCode = False,
    cache: Annotated[
        Path | None,
        console.option(
            "Where finished simulations are kept; by default in the user's cache folder.", "DIR"
        ),
    ] = None,
    workers: console.Workers = None,
    address: console.Address = None,
    as_json: console.AsJson = False,
) -> None:
    """Find the cheapest deployments, MoE or dense, that meet latency targets for a workload, or the
    cheapest splits that train a model in so many days.

    Work is spread over this machine's cores with Ray, where that is installed. With --address it is
    spread over the nodes of a Ray cluster, this one among them; the others need neither moesim nor
    the plan's files.

    Exit status: 0 where one does, 3 where none does within the limits, 2 where the question is
    wrong.
    """
    from simulator.base.caches import findings_folder
    from simulator.commands.plan import plan as answer_question
    from simulator.config.capacity import Question
    from simulator.planner.store import Store
    from simulator.results.plan_sentences import find_rate
    from simulator.scenario.jobs import QUESTIONS, load_job
    from simulator.scenario.question import USUAL_LEVEL, ask, list_routing_notes

    given = asked.Asked(models, cluster, rate, num_input, num_output, ttft, tpot)
    if question is None:
        out_folder = out_folder or Path("reports/out/asked_plan")
        question = asked.write_asked("plan", out_folder, given, ask)
        if any("=" not in limit for limit in (ttft, tpot) if limit):
            console.say_notes([f"a limit without a percentile is that of {USUAL_LEVEL}"])
    else:
        asked.refuse_beside("plan", given)
    job = load_job(question, QUESTIONS, overrides or [], seed)
    folder = console.find_folder(out_folder, job.where, "_plan")
    if not isinstance(job, Question):
        console.refuse_options(
            "a plan of training does not take it",
            cache=cache is not None,
            workers=workers is not None,
            address=bool(address),
        )
        _answer_training(job, folder, as_json)
        return
    store = Store(cache or findings_folder())
    with console.progress("", "reading models, clusters and requests") as bars:
        counted = _Counted(bars)
        try:
            answer = answer_question(
                job,
                folder=folder,
                cache=store,
                workers=workers,
                address=address,
                progress=counted,
            )
        except KeyboardInterrupt:
            raise console.StoppedError(counted.tell_kept(store)) from None
    if as_json:
        console.emit(answer.model_dump(mode="json"))
    else:
        print_plan(answer)
    console.say_notes(map(str, list_routing_notes(job)))
    console.err.say(tell_simulated(answer.num_simulated, store))
    if answer.traffic is not None:
        console.err.say(
            f"judged by {answer.traffic.num_requests:,} requests at "
            f"{find_rate(answer.traffic)} (seed {answer.seed})"
        )
    console.err.say(f"report: {folder / 'report.html'}")
    if answer.recommended is None:
        raise typer.Exit(NOTHING_MEETS)


class _Counted:
    """A progress bar that remembers how many simulations are done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._simulations: dict[str, tuple[int, int]] = {}

    def __call__(self, name: str, done: int, total: int | None, best: str = "", /) -> None:
        if total is not None and not name.startswith("screening"):
            self._simulations[name] = (done, total)
        self._bars(name, done, total, best)

    def tell_kept(self, store: Store) -> str:
        """Describe the results kept when the search is stopped."""
        done, total = (sum(counts[n] for counts in self._simulations.values()) for n in range(2))
        if not done:
            return "stopped; no simulation was done, and nothing was written"
        if store.has_failed:
            return (
                f"stopped; of {done} simulations only those are kept that were done "
                f"before {store.folder} could not be written any more"
            )
        return (
            f"stopped; {done} of {total} simulations are kept in {store.folder}: "
            "run the same command to go on"
        )


def tell_simulated(number: int, store: Store) -> str:
    """Describe how many of the deployments an earlier search has simulated, and how many this one
    has.
    """
    known = store.num_recalled
    kept = f", {known:,} kept from before in {store.folder}" if known else ""
    return f"{number - known:,} simulated{kept}"


def print_plan(answer: Answer) -> None:
    """The answer in sentences, the recommended deployment beside what else would do, and what was
    ruled out.
    """
    console.out.say(console.fill(answer.headline), "bold")
    console.print_points(answer.reasons, answer.findings)
    for line in _candidates(answer):
        console.out.say(line)
    _print_start(answer)
    ruled = sorted((row for row in answer.ruled_out if row.count), key=lambda row: -row.count)
    if ruled:
        judged = answer.num_legal + answer.num_ruled_out
        console.out.say(f"\nRuled out: {answer.num_ruled_out:,} of {judged:,} deployments", "bold")
        count_width = len(f"{ruled[0].count:,}")
        for row in ruled[:_REASONS]:
            count = f"{row.count:,}".rjust(count_width)
            console.out.say(console.fill(row.reason, f"{count}  ", " " * (count_width + 2)))


def _print_start(answer: Answer) -> None:
    """The commands that start the recommended deployment, one of those that differ in numbers only,
    and what they do not express.
    """
    from simulator.report.plan_page import list_servers

    for servers in list_servers(answer.handover)[:1]:
        console.out.say("\nTo start it, as the scripts and the manifest in serve/ do:", "bold")
        for (name, command), *others in servers.commands:
            like = f", and {len(others)} more like it" if others else ""
            console.out.say(f"# {name}{like}\n{command}")
        console.out.say("Not in the flags:", "bold")
        console.print_points(servers.notes)


def _candidates(answer: Answer) -> Iterator[Text]:
    """A row a deployment under the headings of its numbers, the text of the deployment last."""
    from simulator.base.formats import amount
    from simulator.report.plan_page import groups
    from simulator.results.plan_text import share, target_short, value_text

    currency = answer.currency
    head = [
        f"{currency}/hour",
        f"{currency}/1M out",
        "GPUs",
        *map(target_short, answer.targets),
        "binding SLO",
    ]
    found = list(groups(answer, _RUNNERS_UP))
    cells = {
        id(row): [
            amount(row.cost_per_hour),
            amount(row.cost_per_million_output_tokens),
            f"{row.gpus:,}",
            *(
                "-" if (value := row.measured_value(name)) is None else value_text(name, value)
                for name in answer.targets
            ),
            share(row.worst_ratio),
        ]
        for _, rows in found
        for row in rows
    }
    if not cells:
        return
    widths = [max(len(head[n]), *(len(row[n]) for row in cells.values())) for n in range(len(head))]

    def numbers(row: list[str]) -> str:
        return "  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True))

    indent = sum(widths) + 2 * len(widths)
    room = console.out.width - indent if console.out.is_terminal else None
    beside = room is None or room >= _NARROWEST
    yield Text()
    yield Text(numbers(head) + ("  deployment" if beside else ""), "bold")
    for title, rows in found:
        yield Text(f"{title}:", "bold")
        for row in rows:
            line = numbers(cells[id(row)])
            if not beside:
                yield Text(console.fill(row.deployment, "  ", "  "))
                yield Text(line)
                continue
            first, *more = (
                textwrap.wrap(row.deployment, room, break_on_hyphens=False)
                if room
                else [one_line(row.deployment)]
            )
            yield Text(f"{line}  {first}")
            for part in more:
                yield Text(" " * indent + part)


def _answer_training(question: TrainingQuestion, folder: Path, as_json: bool) -> None:
    """Answer a question about training, write its folder, and print the answer."""
    from simulator.commands.plan import plan_training
    from simulator.commands.report import write_results
    from simulator.results.training_answer import RECOMMENDED, TrainingAnswer

    TrainingAnswer.check_writable(folder)
    with console.progress("", "reading models and machines") as tick:
        answer = plan_training(question, progress=tick)
        tick("writing the report", 0, None)
        write_results(answer, folder)

    numbers = {key: answer.run[key] for key in ("verdict", "ruled_out")}
    numbers["candidates"] = console.rows_of(answer.candidates)
    console.finish(as_json, folder, numbers, lambda: _print_training_answer(answer))
    if answer.recommended is None:
        raise typer.Exit(NOTHING_MEETS)
    console.err.say(f"recommended: moesim run {folder / RECOMMENDED}")


def _print_training_answer(answer: TrainingAnswer) -> None:
    """Print the verdict, the best splits, and what was ruled out."""
    console.print_findings(answer)
    ruled = answer.run["ruled_out"]
    if ruled:
        console.out.say(f"Ruled out: {sum(ruled.values()):,} splits", "bold")
        for reason, count in sorted(ruled.items(), key=lambda item: -item[1]):
            console.out.say(f"{count:>7,}  {reason}")
