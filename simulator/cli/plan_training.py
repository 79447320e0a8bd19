"""``moesim plan`` about training: the cheapest splits that train models in so many days."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from simulator.base.errors import UserError
from simulator.cli import console

NOTHING_MEETS = 3
"""Exit status where the question was answered, and the answer is that nothing meets the targets
within the limits."""
_ROWS_OF_A_MODEL = 3


def answer_training(
    question: str, out_folder: Path | None, seed: int | None, overrides: list[str], as_json: bool
) -> None:
    """Answer a question about training, write its folder, and print the answer."""
    from simulator.commands.plan_training import plan_training
    from simulator.commands.report import write_results
    from simulator.results.training_answer import RECOMMENDED, TrainingAnswer
    from simulator.scenario.training_question import load_training_question

    loaded = load_training_question(question, overrides, seed)
    folder = out_folder or Path("reports/out") / f"{Path(loaded.where).stem}_plan"
    TrainingAnswer.check_writable(folder)
    with console.progress("", "reading models and machines") as tick:
        answer = plan_training(loaded, progress=tick)
        tick("writing the report", 0, None)
        write_results(answer, folder)
    if as_json:
        rows = json.loads(answer.candidates.to_json(orient="records", double_precision=15))
        console.emit(
            {
                "folder": str(folder),
                "verdict": answer.run["verdict"],
                "ruled_out": answer.run["ruled_out"],
                "candidates": rows,
            }
        )
    else:
        print_training_answer(answer)
    if answer.recommended is not None:
        console.err.say(f"recommended: moesim run {folder / RECOMMENDED}")
    console.err.say(f"report: {folder / 'report.html'}")
    if answer.recommended is None:
        raise typer.Exit(NOTHING_MEETS)


def print_training_answer(answer: Any) -> None:
    """Print the verdict, the best splits, and what was ruled out."""
    from simulator.results.formats import number, percent
    from simulator.results.training_answer import list_sizes

    verdict, currency = answer.run["verdict"], answer.run["currency"]
    console.print_verdict(verdict["headline"], verdict["reasons"])
    rows = [["", "GPUs", "days", currency, "MFU", "micro-batch", "recomputed"]]
    shown = list_sizes(answer.candidates).groupby("model", sort=False).head(_ROWS_OF_A_MODEL)
    for row in shown.to_dict("records"):
        kept = "" if row["keeps_target"] else " (too slow)"
        rows.append(
            [
                f"{row['model']} on {row['cluster']}, {row['split']}",
                f"{int(row['num_gpus']):,}",
                f"{number(row['days'])}{kept}",
                f"{row['cost']:,.0f}",
                percent(row["mfu"]),
                str(row["micro_batch"]),
                row["recompute"],
            ]
        )
    console.print_table(rows)
    ruled = answer.run["ruled_out"]
    if ruled:
        console.out.say(f"\nRuled out: {sum(ruled.values()):,} splits", "bold")
        for reason, count in sorted(ruled.items(), key=lambda item: -item[1]):
            console.out.say(f"{count:>7,}  {reason}")


def refuse_options(**given: bool) -> None:
    """Refuse options that a plan of training has no use for.

    Raises:
        UserError: naming the first one.
    """
    for option, is_given in given.items():
        if is_given:
            raise UserError(f"--{option}: a plan of training does not take it; leave it out")
