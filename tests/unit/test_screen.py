"""What a stranger's file names is shown on the terminal and obeyed by none: neither by the terminal
nor by a spreadsheet.
"""

import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from simulator.base.spreadsheet import guard_text, restore_texts, unguard_text, write_csv
from simulator.base.text import one_line, visible
from simulator.cli import console
from simulator.cli.console import Screen
from simulator.cli.run import print_run
from simulator.lab.validation import tables
from simulator.results.folder import Results
from tests.report.small_runs import DEPLOYMENTS, serve, show

HOSTILE = "\x1b]0;owned\x07 \x9b31m\r\x08 [red]:fire:[/red] \u202etxt \udcff"
ARROW = '=HYPERLINK("http://x")'


def shown(*objects, is_terminal=False, **options):
    screen = Screen(file=io.StringIO(), force_terminal=is_terminal, width=200, color_system=None)
    screen.print(*objects, soft_wrap=True, **options)
    return screen.file.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize(
    "made", [str, Text, lambda text: _table(text), lambda text: _table(text, "title")]
)
def test_nothing_that_a_terminal_obeys_comes_through_however_it_is_printed(made, is_terminal):
    found = shown(made(HOSTILE), is_terminal=is_terminal)
    assert not set(found) & set("\x1b\x07\x9b\r\x08\u202e\udcff")
    assert r"\x1b]0;owned" in found
    assert r"\x9b31m" in found
    assert "[red]:fire:[/red]" in found
    assert r"\u202etxt \udcff" in found


def _table(text, where="cell"):
    made = Table("heading", title=text if where == "title" else None)
    made.add_row(text if where == "cell" else "-")
    return made


@given(st.text())
def test_what_is_visible_is_printable_once_and_for_all(text):
    assert visible(visible(text)) == visible(text)
    assert "\n" not in one_line(text)
    if text.isprintable() and "\u061c" not in text:
        assert one_line(text) == text


def test_the_terminals_own_codes_and_the_lines_of_a_text_stay():
    assert shown("a\nb", style="bold") == "a\nb\n"
    screen = Screen(file=io.StringIO(), force_terminal=True, color_system="standard")
    screen.print("x", style="red")
    assert screen.file.getvalue() == "\x1b[31mx\x1b[0m\n"


def test_every_command_prints_through_it(moesim, tmp_path, monkeypatch):
    assert isinstance(console.out, Screen)
    assert isinstance(console.err, Screen)
    name = "a\x1b[31m:fire:.toml"
    code, _, err = moesim("check", name)
    assert code == 2
    assert r"a\x1b[31m:fire:.toml" in err
    (tmp_path / "workloads/models").mkdir(parents=True)
    (tmp_path / "workloads/models" / "m.toml").write_text('title = "x\\u001b[31m\\ny:fire:"\n')
    for arguments in (("list", "models"), ("list", "models", "--markdown")):
        code, out, _ = moesim(*arguments)
        assert code == 0
        assert r"x\x1b[31m\ny:fire:" in out
    assert "\x1b" in json.loads(moesim("list", "models", "--json")[1])["models"]["m"]


def test_a_hostile_name_is_printed_in_the_comparison_and_comes_back_from_its_folder(
    tmp_path, capsys
):
    run = serve(DEPLOYMENTS[2], num_requests=1)
    renamed = show(run, (run.deployments[0], f"{ARROW}\x1b[31m"))
    renamed.write(tmp_path / "out")
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["deployment"] == f"'{ARROW}\x1b[31m"
    again = Results.read(tmp_path / "out")
    assert again.deployments == renamed.deployments
    print_run(again)
    assert "\x1b" not in capsys.readouterr().out


@given(st.text() | st.from_regex(r"'{0,3}[=+\-@\t\r].*", fullmatch=True))
def test_a_guarded_text_is_no_formula_and_comes_back(text):
    safe = guard_text(text)
    assert unguard_text(safe) == text
    if safe[:1] in "=+-@\t\r\n" and len(safe) > 1:
        float(safe)
    if text[:1] not in "'=+-@\t\r\n\uff1d\uff0b\uff0d\uff20":
        assert safe == text


@given(
    st.lists(st.tuples(st.text("=+-@'aé, \"", min_size=1), st.floats(allow_nan=False)), min_size=1)
)
def test_a_table_comes_back_from_its_file_and_its_numbers_are_numbers(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    table = pd.DataFrame(rows, columns=["=name", "number"])
    write_csv(table, path)
    again = restore_texts(pd.read_csv(path, dtype={"'=name": str}, keep_default_na=False))
    pd.testing.assert_frame_equal(again, table)
    with path.open(newline="", encoding="utf-8") as file:
        for cell in (cell for row in csv.reader(file) for cell in row):
            assert cell == guard_text(cell) or unguard_text(cell) != cell


def test_the_rows_of_validate_come_back_through_its_own_reader(tmp_path):
    rows = pd.DataFrame({"=gpu": [ARROW, "h100"], "m": ["-4", "8"], "note": ["'tis", "@x"]})
    tables.write_table(rows, tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_text()
    assert "'=HYPERLINK" in text
    assert "'@x" in text
    assert ",-4," in text
    assert tables.read_table(tmp_path / "rows.csv").texts.to_dict("list") == rows.to_dict("list")
