"""The notebook runs from its first cell to its last, and shows what it speaks of."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_answer.ipynb"
MOST_LINES = 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages of Jupyter
def test_the_notebook_runs_and_shows_a_table_an_answer_and_a_figure(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
    stored = [output.data.get("text/plain") for cell in cells for output in cell.outputs]
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    verdict, table, meaning, answer, figure = [
        output.data for cell in cells for output in cell.outputs if "data" in output
    ]
    found = [verdict, table, meaning, answer, figure]
    assert [one.get("text/plain") for one in found] == stored, "store the outputs of today"
    assert "Mixtral-8x7B" in verdict["text/plain"]
    assert "tpot_p50_s" in table["text/html"]
    assert "[s]" in meaning["text/plain"]
    assert "gpt-oss-20b" in answer["text/plain"]
    assert "application/vnd.plotly.v1+json" in figure
