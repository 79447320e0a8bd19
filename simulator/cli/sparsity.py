"""``moesim sparsity``: from which sparsity bytes and time fall."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from simulator.cli import console

_TOKENS = (16, 1024)


def sparsity(
    matrix: Annotated[
        str, console.option("The weight matrix that is pruned.", "ROWSxCOLUMNS")
    ] = "14336x4096",
    dtype: Annotated[str, console.option("Number format of weights and data.", "FORMAT")] = "bf16",
    machine: Annotated[
        list[str] | None,
        console.option(
            "Accelerator; by default one of each family that pruned products were measured "
            "on. May be given several times.",
            "NAME",
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        console.option("Tokens of a product; by default 16 and 1,024.", "N", min=1),
    ] = None,
    data: Annotated[
        str,
        console.option(
            "Activations or inputs: ROWSxCOLUMNS@DENSITY, or a .npy file whose zeros are counted.",
            "DATA",
        ),
    ] = "4096x14336@0.1",
    real: Annotated[
        bool,
        console.option(
            "Measure pruned layers on this machine's processor as well, which takes about a "
            "minute once and is kept.",
            flag="--real",
        ),
    ] = False,
    out_folder: Annotated[
        Path,
        console.option("Folder to write.", "DIR", flag="--out"),
    ] = Path("reports/out/sparsity"),
    as_json: console.AsJson = False,
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
    results = SparsityFolder.make(found, made)
    write_results(results, out_folder)
    if as_json:
        console.emit(results.run["sparsity"])
    else:
        console.print_findings(results)
    console.err.say(f"report: {out_folder / 'report.html'}")
