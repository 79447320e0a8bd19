"""The page of a plan in a browser: it opens offline, on a desk and on a phone, and nothing is cut,
covered or dead.
"""

import pytest

from simulator.base.formats import batched_tokens
from simulator.report.gallery import plots
from simulator.report.plan_page import FIGURES, list_candidates, render
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from simulator.results.plan_text import is_floor
from tests.report.plan_answers import RUN, TRAFFIC, answer, banded
from tests.report.windows import DESK, PHONE

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_opens_offline_and_its_lists_and_buttons_work(open_page, tmp_path, viewport):
    made = answer()
    file = tmp_path / "report.html"
    file.write_text(render(PlanResults(RUN, Answer.model_validate(made))), encoding="utf-8")
    opened = open_page(file, viewport)
    page = opened.page
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == sum(
        len(plots(f, Answer.model_validate(made))) for f in FIGURES
    )
    assert opened.is_as_wide_as_shown
    page.select_option("select[data-choice=Experts]", "EP 8")
    plot = "document.querySelector('select[data-choice=Experts]').closest('.cell').querySelector('.plot')"
    assert page.evaluate(
        f"{plot}.data.filter((trace) => trace.visible).map((trace) => trace.meta.Experts)"
    ) == ["EP 8"]
    page.dispatch_event(".copy >> nth=0", "click")
    assert page.evaluate("getSelection().toString()").strip() == "moesim run recommended.toml"
    assert opened.problems == []


def test_candidates_are_ranked_anew_under_other_prices_and_limits(open_page, tmp_path):
    """As the rows themselves say: cheapest first of those whose every figure keeps its limit."""
    given, target = answer(), "tpot_s.p90"
    rows = given["recommended"], *given["candidates"]
    for row, value in zip(rows, (0.04, 0.04, 0.02, 0.03), strict=True):
        row[target] = value
    rows[-1]["cluster"] = "b200-sxm-8"
    made = Answer.model_validate(given)
    file = tmp_path / "report.html"
    file.write_text(render(PlanResults(RUN, made)), encoding="utf-8")
    opened = open_page(file, DESK)
    page = opened.page
    rows = page.locator("tr[data-gpus]")
    before = rows.all_inner_texts()
    shown = [one for group in list_candidates(made).groups.values() for one in group]
    prices, limits = {"h100-sxm": 2.0, "b200-sxm": 0.1}, made.targets | {target: 0.035}
    for machines, price in prices.items():
        page.fill(f'[data-price="{machines}"]', str(price))
    page.fill(f'[data-limit="{target}"]', "0.035")

    def worst(row):
        ratios = {name: row.measured_value(name) / limits[name] for name in limits}
        return max(1 / one if is_floor(name) else one for name, one in ratios.items())

    def cost(one):
        return one.row.gpus * prices[one.machines] + one.row.cost_power_per_hour

    meets = sorted((one for one in shown if worst(one.row) <= 1), key=cost)
    assert 0 < len(meets) < len(shown)
    names = [text.splitlines()[0] for text in rows.all_inner_texts()]
    assert names[: len(meets)] == [one.row.deployment for one in meets]
    assert meets[0].row.deployment in page.inner_text(".conditions output")
    page.click(".conditions button")
    page.wait_for_function("!document.querySelector('.conditions output').value")
    assert rows.all_inner_texts() == before
    assert opened.problems == []


# Of every text that a plot shows: what sticks out of the plot, and which of one kind lie on each
# other.
CROWDED = """() => {
  const found = [];
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const around = plot.getBoundingClientRect();
    for (const kind of ['.annotation-text', '.xtick text', '.ytick text', '.heatmap-label text']) {
      const boxes = [...plot.querySelectorAll(kind)].map((text) => [text.textContent, text.getBoundingClientRect()]);
      boxes.forEach(([text, box], i) => {
        if (box.left < around.left - 1 || box.right > around.right + 1) found.push(`${plot.ariaLabel}: ${text} is cut`);
        for (const [other, next] of boxes.slice(i + 1)) {
          const apart = box.right <= next.left || next.right <= box.left || box.bottom <= next.top + 1 || next.bottom <= box.top + 1;
          if (!apart) found.push(`${plot.ariaLabel}: ${text} lies on ${other}`);
        }
      });
    }
  }
  return found;
}"""

# The text of the recommended deployment's hover box, and how far the box sticks out of its plot.
HOVERED = """() => {
  const plot = [...document.querySelectorAll('.js-plotly-plot')].find((p) => p.data.some((t) => t.name === 'recommended'));
  Plotly.Fx.hover(plot, [{ curveNumber: plot.data.findIndex((t) => t.name === 'recommended'), pointNumber: 0 }]);
  const box = plot.querySelector('.hovertext'), around = plot.getBoundingClientRect(), own = box.getBoundingClientRect();
  return [box.textContent, Math.max(around.left - own.left, own.right - around.right)];
}"""


def test_on_a_phone_nothing_is_cut_or_covered_and_bands_show(open_page, tmp_path):
    made = banded(answer())
    made["traffic"] |= TRAFFIC | {"is_steady": False}
    made["ruled_out"] *= 3
    made["ruled_out"][1] = {
        "reason": "attention data parallelism of a dense model is the same as more replicas",
        "count": 9,
        "example": "x",
    }
    best, tokens = made["recommended"], 8192
    for point in made["pareto"]:
        point["deployment"] += f", {batched_tokens(tokens)}"
    file = tmp_path / "report.html"
    file.write_text(render(PlanResults(RUN, Answer.model_validate(made))), encoding="utf-8")
    page = open_page(file, PHONE).page
    assert page.evaluate(CROWDED) == []
    assert page.evaluate("document.querySelectorAll('.modebar-btn').length") == 0
    assert (
        page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > "
            "box.clientWidth).length"
        )
        == 0
    )
    assert page.evaluate("document.querySelectorAll('.xerror, .yerror').length") > 10
    said, over = page.evaluate(HOVERED)
    words = f"{best['deployment']}, {batched_tokens(tokens)}".replace(" ", "")
    assert words in said.replace(" ", "")
    for part in ("2GPUs,5.98USDperhour", "TTFTp90125ms", "simulated"):
        assert part in said.replace(" ", "")
    assert over <= 1
