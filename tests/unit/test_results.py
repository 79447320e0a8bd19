"""The results folder: whole or not at all, read back unchanged, merged only where that is fair."""

import json
import os

import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.cli.run import report
from simulator.results.folder import LONG_TABLES, SHORT_TABLES, TABLES, Results, merge
from simulator.results.results_folder import SCHEMA
from simulator.results.tables import SPAN_COLUMNS

SHOWN_STEP = {"source": "run", "number": 1234, "replica": 2, "start_s": 90.0, "num_batches": 4}


def made(*names, **run):
    names = names or ("a",)
    row = {"num_output": 1, "priority": 0, "outcome": "finished", "pool": "both", "request": 0}
    values = [0.1 * number for number in range(len(names))]
    table = pd.DataFrame({"deployment": list(names), **row, "value": values})
    rows = table.drop(columns="deployment")
    tables = {one: table.copy() for one in TABLES}
    for one in LONG_TABLES:
        tables[one] = {name: rows.iloc[[number]] for number, name in enumerate(names)}
    span = {"phase": "decode", "rank": 0, "name": "wait", "layer": 1}
    span |= {"start_s": 0.5, "duration_s": 0.25}
    spans = [{"deployment": name, **span} for name in names]
    tables["spans"] = pd.DataFrame(spans, columns=list(SPAN_COLUMNS))
    facts = {"name": "r", "workload": {"rate_per_s": 1.5}, "slo": {"ttft_s": 1.0}}
    facts |= {"verdict": {"headline": "old"}, **run}
    shown = {"decode": SHOWN_STEP}
    deployments = {name: {"of": name, "shown_steps": shown} for name in names}
    summary = pd.DataFrame({"deployment": list(names), "ttft_p50_s": 0.1 + 0.2})
    return Results(run={**facts, "deployments": deployments}, summary=summary, **tables)


def page(_):
    return "<html>é</html>"


def test_what_is_written_is_read_back_unchanged(tmp_path):
    results = made("a", "b, c", "NA", "1")
    results.write(tmp_path / "deep" / "er" / "run", page)
    found = Results.read(tmp_path / "deep" / "er" / "run")
    assert found.run == results.run
    assert found.deployments == ["a", "b, c", "NA", "1"]
    assert found.summary["ttft_p50_s"][0] == 0.1 + 0.2
    for table in ("summary", *SHORT_TABLES):
        pd.testing.assert_frame_equal(
            getattr(found, table), getattr(results, table), check_dtype=False
        )
    for table in LONG_TABLES:
        own, other = getattr(found, table), getattr(results, table)
        assert list(own) == list(other)
        for name in own:
            pd.testing.assert_frame_equal(own[name], other[name].reset_index(drop=True))
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["run"]


def test_a_second_run_replaces_the_first_whole(tmp_path):
    made("a").write(tmp_path / "run", page)
    (tmp_path / "run" / "comparison.html").write_text("made by report")
    made("b").write(tmp_path / "run", page)
    assert Results.read(tmp_path / "run").deployments == ["b"]
    assert not (tmp_path / "run" / "comparison.html").exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    made("a").write(tmp_path / "run", page)
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    made("b").write(tmp_path / "link", page)
    assert (tmp_path / "link").is_symlink()
    assert Results.read(tmp_path / "run").deployments == ["b"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), ZeroDivisionError]
)
def test_what_goes_wrong_half_way_leaves_the_earlier_run_and_nothing_else(
    tmp_path, monkeypatch, error
):
    made("a").write(tmp_path / "run", page)

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(pd.DataFrame, "to_parquet", stop)
    kind = UserError if isinstance(error, OSError) else error
    for folder in (tmp_path / "run", tmp_path / "new" / "run"):
        with pytest.raises(kind) as refused:
            made("b").write(folder, page)
        if kind is UserError:
            assert "No space left on device" in str(refused.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Results.read(tmp_path / "run").deployments == ["a"]


def test_an_interrupt_between_the_two_renames_brings_the_earlier_run_back(tmp_path, monkeypatch):
    made("a").write(tmp_path / "run", page)
    replace, calls = os.replace, []

    def stop_at_the_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        made("b").write(tmp_path / "run", page)
    assert Results.read(tmp_path / "run").deployments == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_report_that_cannot_be_drawn_writes_nothing_and_is_no_error_of_the_users(tmp_path):
    def broken(_):
        raise FileNotFoundError("page.css")

    with pytest.raises(FileNotFoundError):
        made("a").write(tmp_path / "run", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    made("a").write(tmp_path / "run", page)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt'"):
        Results.check_writable(tmp_path / "run")
    (tmp_path / "half").mkdir()
    Results.check_writable(tmp_path / "half")
    (tmp_path / "half" / "summary.csv").touch()
    with pytest.raises(UserError, match="not a whole results folder"):
        Results.check_writable(tmp_path / "half")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        Results.check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=r"file is a file, not a folder"):
        Results.check_writable(tmp_path / "file" / "below")


@pytest.mark.parametrize("schema", [None, SCHEMA - 1, SCHEMA + 1, "nonsense"])
@pytest.mark.parametrize("command", ["run", "execute", "plan"])
def test_a_folder_of_another_schema_is_refused_with_the_command_that_makes_it(
    tmp_path, command, schema
):
    run = {"command": f"moesim {command} x", "versions": {"moesim": "0.0.9"}}
    if command == "execute":
        run["machine"] = "here"
    if command == "plan":
        (tmp_path / "plan.json").write_text('{"headline": "", "reasons": []}')
    named = {} if schema is None else {"schema": schema}  # folders named none before
    (tmp_path / "run.json").write_text(json.dumps({**run, **named}))
    said = f"schema {schema or 1}, .*schema {SCHEMA}: make it again .moesim {command} x"
    with pytest.raises(UserError, match=rf"^[^\n]*0\.0\.9[^\n]*{said}[^\n]*$"):
        report([tmp_path])


def test_a_place_without_permission_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="no permission to write in"):
        Results.check_writable(tmp_path / "run")


def test_what_is_no_whole_folder_is_not_read(tmp_path):
    with pytest.raises(UserError, match=r"no run\.json"):
        Results.read(tmp_path)
    made("a", "b").write(tmp_path / "run", page)
    (tmp_path / "run" / "summary.csv").write_text("deployment\na\n")
    with pytest.raises(UserError, match="name other deployments"):
        Results.read(tmp_path / "run")
    (tmp_path / "run" / "steps.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"^[^\n]*is not a whole results folder[^\n]*$"):
        Results.read(tmp_path / "run")


def test_merged_runs_keep_their_deployments_apart(tmp_path):
    paths = [tmp_path / name for name in ("x/run", "y/run", "z")]
    found = merge(
        [(paths[0], made("a", "b")), (paths[1], made("a", name="second")), (paths[2], made("c"))]
    )
    assert found.deployments == ["a (x/run)", "b", "a (y/run)", "c"]
    assert list(found.run["deployments"]) == found.deployments
    assert found.run["name"] == "r and second"
    assert "verdict" not in found.run
    for table in SHORT_TABLES:
        assert set(getattr(found, table)["deployment"]) == set(found.deployments)
    for table in LONG_TABLES:
        assert list(getattr(found, table)) == found.deployments


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("two", {"workload": {"rate_per_s": 3.0}}, "two: served other requests than"),
        ("two", {"slo": {}}, "two: had other latency targets"),
        ("one", {}, "named twice"),
    ],
)
def test_runs_that_cannot_be_compared_are_not_merged(tmp_path, name, changes, said):
    alone = made("a")
    assert merge([(tmp_path / "one", alone)]) is alone
    with pytest.raises(UserError, match=said):
        merge([(tmp_path / "one", alone), (tmp_path / name, made("b", **changes))])
