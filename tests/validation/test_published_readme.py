"""Columns of published tables: their README against what reads them."""

import re

from simulator.base.data import shipped_folder
from simulator.base.plugins import build
from simulator.lab.validation.published import FIGURE_COLUMNS, topic_of
from simulator.lab.validation.published._rows import RowTopic
from simulator.lab.validation.tables import read_table

FOLDER = shipped_folder() / "workloads" / "validation"


def test_the_readme_has_the_columns_that_each_table_is_read_by():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[2:-1]] for line in lines]
    rows = {
        line.split("`")[1]: cells[number]
        for number, line in enumerate(lines)
        if line.startswith("| `")
        and ".csv" in line
        and len(cells[number]) == 2
        and cells[number][0]
    }
    explained = {
        name
        for line in lines
        if line.startswith("| `") and ".csv" not in line
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert rows.keys() | {"serving_pairs.csv"} == {path.name for path in FOLDER.glob("*.csv")}
    for file, (required, optional) in rows.items():
        kind = topic_of(set(read_table(FOLDER / file, 1).values.columns))
        topic = build("validation.published", {"kind": kind}, "test")
        fields = topic.row.model_fields if isinstance(topic, RowTopic) else {}
        others = [name for name, field in fields.items() if not field.is_required()]
        assert required == [name for name in topic.columns if name not in FIGURE_COLUMNS]
        assert set(optional) == {"value", *others, *(("machine", "refused") if fields else ())}
        own = {name for name in optional if not name.startswith("against_")}
        assert {*FIGURE_COLUMNS, *required, *own} <= explained
