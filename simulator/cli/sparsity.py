"""``moesim sparsity``: from which sparsity bytes and time fall."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import console
from simulator.cli.console import AsJson

if TYPE_CHECKING:
    from simulator.results.sparsity import SparsityResults, SpeedCurve

_TOKENS = (16, 1024)


def sparsity(
    matrix: Annotated[
        str, typer.Option(metavar="ROWSxCOLUMNS", help="The weight matrix that is pruned.")
    ] = "14336x4096",
    dtype: Annotated[
        str, typer.Option(metavar="FORMAT", help="Number format of weights and data.")
    ] = "bf16",
    machine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Accelerator; by default one of each family that pruned products were measured "
            "on. May be given several times.",
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Tokens of a product; by default 16 and 1,024.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Activations or inputs: ROWSxCOLUMNS@DENSITY, or a .npy file whose zeros are "
            "counted.",
        ),
    ] = "4096x14336@0.1",
    real: Annotated[
        bool,
        typer.Option(
            "--real",
            help="Measure pruned layers on this machine's processor as well, which takes about a "
            "minute once and is kept.",
        ),
    ] = False,
    out_folder: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder to write."),
    ] = Path("reports/out/sparsity"),
    as_json: AsJson = False,
) -> None:
    """Say from which sparsity a pruned matrix takes fewer bytes (exactly, by format and index
    width) and less time (by machine and kernels), beside what was published.
    """
    from simulator.commands.report import write_results
    from simulator.commands.sparsity import (
        MACHINES,
        REAL_SHAPE,
        REAL_TOKENS,
        compare_sparsity,
        find_data,
        find_sizes,
        measure_here,
    )
    from simulator.results.provenance import Provenance
    from simulator.results.sparsity import SparsityFolder

    shape, values = find_sizes(matrix, "--matrix"), find_data(data)
    SparsityFolder.check_writable(out_folder)
    measured, made = None, Provenance.begin()
    if real:
        with console.progress("products", "pruning matrices") as tick:
            measured = measure_here(REAL_SHAPE, REAL_TOKENS, tick)
    found = compare_sparsity(shape, dtype, machine or MACHINES, tokens or _TOKENS, values, measured)
    made_folder = SparsityFolder.make(found, made)
    write_results(made_folder, out_folder)
    if as_json:
        console.emit(asdict(found))
    else:
        console.print_verdict(**made_folder.verdict)
        _print(found)
    console.err.say(f"report: {out_folder / 'report.html'}")


def _print(found: SparsityResults) -> None:
    rows = [["format", "bytes at 50 %", "at 75 %", "at 90 %", "fewer bytes from"]]
    for curve in found.storage:
        if len(curve.sparsities) == 1:
            rows.append([curve.format, f"{curve.shares[0]:.4g}", "", "", ""])
            continue
        shares = [f"{curve.shares[at]:.4g}" for at in (50, 75, 90)]
        rows.append([curve.format, *shares, _write_share(curve.break_even)])
    console.print_table(rows)
    rows = [["machine, kernels, tokens", "speed at 50 %", "at 75 %", "at 90 %", "faster from", ""]]
    for one in (*found.speeds, *(found.measured.curves if found.measured else ())):
        rows.append(_write_speed(one))
    console.print_table(rows)


def _write_speed(curve: SpeedCurve) -> list[str]:
    found = [curve.find_speed(at) for at in (0.5, 0.75, 0.9)]
    speeds = ["" if one is None else f"{one:.2f}" for one in found]
    name = f"{curve.machine}, {curve.kernels}, {curve.dtype}, {curve.tokens:,}"
    return [name, *speeds, curve.break_even_text, curve.basis]


def _write_share(share: float | None) -> str:
    return "never" if share is None else f"{share:.1%}"
