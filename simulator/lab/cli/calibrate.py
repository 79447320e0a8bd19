"""``moesim calibrate``: fit cost models on this machine, or on tables of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.base.data import data_folder
from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.cli import console

_FOLDER = Path("cluster_configs/calibration")
_DEVICE = Path("this-machine.toml")


def register(commands: typer.Typer) -> None:
    """Add the command to those of ``moesim``."""
    commands.command()(calibrate)


def calibrate(
    what: Annotated[
        str,
        console.argument(
            "cpu: time this machine. published: fit the shipped calibrations anew on "
            "tables of measurements."
        ),
    ] = "cpu",
    folder: Annotated[
        Path | None,
        console.argument(
            "Of published: the folder with the tables.", "[FOLDER]", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        console.option(
            f"By default {_FOLDER / _DEVICE} of the user's data folder, where execute finds "
            f"it; of published a folder, by default {_FOLDER}.",
            "PATH",
        ),
    ] = None,
    ranks: Annotated[
        list[int] | None,
        console.option(
            "Of cpu: numbers of ranks to time; by default up to twice the cores.", "N", min=1
        ),
    ] = None,
    tables: Annotated[
        list[str] | None,
        console.option(
            "Of published: a table to fit, such as gemm; by default all.", "NAME", flag="--table"
        ),
    ] = None,
) -> None:
    """Time this machine's kernels and exchanges for what execute predicts, or fit cost models on
    published measurements.
    """
    if what == "published":
        if folder is None:
            raise UserError("calibrate published: name the folder with the tables of measurements")
        if ranks:
            raise UserError("--ranks: belongs to 'calibrate cpu'")
        _calibrate_published(folder, out or _FOLDER, tuple(tables or ()))
    elif what == "cpu":
        if folder is not None:
            raise UserError(
                f"calibrate cpu {folder}: takes no folder; --out names the file to write"
            )
        if tables:
            raise UserError("--table: belongs to 'calibrate published'")
        _calibrate_cpu(out or data_folder() / _FOLDER / _DEVICE, ranks)
    else:
        raise UserError(f"calibrate {what}: must be cpu or published")


def _calibrate_cpu(out_file: Path, ranks: list[int] | None) -> None:
    from simulator.runtime import require

    require("torch")
    require("ray")
    from simulator.calibration.host.timing import calibrate as time_machine
    from simulator.calibration.host.timing import calibration_toml, default_ranks
    from simulator.results.executed import BUSY
    from simulator.runtime.nodes import connect

    out_file.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(out_file) as partial,
        console.progress(unit="parts", waiting="starting Ray") as tick,
        connect() as nodes,
    ):
        found = time_machine(nodes, ranks or default_ranks(), tick)
        partial.write_text(calibration_toml(found), encoding="utf-8")
    if (found.others_share or 0.0) >= BUSY:
        note = (
            f"other programs took {found.others_share:.0%} of this machine's cores meanwhile, so "
            "times of exchanges and several threads are too long; calibrate again when it is idle"
        )
        console.say_notes([note])
    console.err.say(f"calibration of {found.machine}: {out_file}")


def _calibrate_published(folder: Path, out_folder: Path, names: tuple[str, ...]) -> None:
    from simulator.lab.calibration.published import fit_files

    if out_folder.exists() and not out_folder.is_dir():
        raise UserError(f"--out {out_folder}: is a file; name a folder")
    with console.progress(unit="tables", waiting="reading") as tick:
        files = fit_files(folder, names, tick)
    for path, text in files.items():
        target = out_folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as partial:
            partial.write_text(text, encoding="utf-8")
        console.err.say(f"calibration: {target}")
    folders = dict.fromkeys(out_folder / path.parts[0] for path in files if len(path.parts) > 1)
    console.say_notes(
        f"{folder} is read beside a file {folder}.toml, which is not there"
        for folder in folders
        if not folder.with_name(f"{folder.name}.toml").is_file()
    )
