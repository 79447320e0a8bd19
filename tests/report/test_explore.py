"""The page of ``moesim explore``: its controls say what the file says, a change gives what the
command gives, and nobody else is served.
"""

import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request

import pytest

from simulator.base.data import available_files
from simulator.commands.explore import Exploration, compare
from simulator.commands.run import run
from simulator.scenario.jobs import SCENARIOS, load_job, load_scenario
from tests.small_scenario import small_scenario

pytest.importorskip("starlette", reason="needs pip install 'moesim[explore]'")
pytestmark = pytest.mark.xdist_group("pages")

SHIPPED = [name for one in SCENARIOS for name in available_files(one.FAMILY)]


def controls_of(exploration, text):
    groups = exploration.list_groups(tomllib.loads(text))
    return {one.path: one for group in groups for one in (*group.usual, *group.others)}


@pytest.fixture
def small_file(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(f"# why it was asked\n{small_scenario('olmoe-1b-7b', 8)}", encoding="utf-8")
    return file


@pytest.mark.parametrize("name", SHIPPED)
def test_setting_every_control_to_its_own_value_changes_nothing(name):
    exploration = Exploration(name)
    controls = controls_of(exploration, exploration.path.read_text(encoding="utf-8"))
    own = {path: one.value for path, one in controls.items() if one.value and not one.is_policy}
    assert len(own) > 3
    again = load_job(name, SCENARIOS, [f"{path}={value}" for path, value in own.items()])
    assert again.model_dump(mode="json") == load_job(name, SCENARIOS).model_dump(mode="json")


def test_a_change_gives_what_the_command_and_the_file_give(small_file, tmp_path):
    changes = {
        "deployments.0.routing": '{ kind = "zipf" }',
        "deployments.0.routing.exponent": "1.2",
        "deployments.0.model.top_k": "4",
    }
    exploration = Exploration(str(small_file))
    view = exploration.view(changes)
    texts = [f"{path}={value}" for path, value in changes.items()]
    by_command = run(load_scenario(small_file, texts))
    assert view.results.summary.equals(by_command.summary)
    assert view.toml.startswith("# why it was asked")
    written = tmp_path / "written.toml"
    written.write_text(view.toml, encoding="utf-8")
    assert run(load_scenario(written)).summary.equals(by_command.summary)
    cells = compare(exploration.start().results, view.results).rows[1]
    assert any(cell.hint for cell in cells[1:])
    controls = controls_of(exploration, view.toml)
    assert controls["deployments.0.routing.exponent"].value == "1.2"
    assert "zipf" in controls["deployments.0.routing"].options


def test_what_is_refused_says_why_and_leaves_the_controls(small_file):
    exploration = Exploration(str(small_file))
    view = exploration.view({"deployments.0.routing": '{ kind = "zipf" }'})
    assert view.results is None
    assert "exponent" in view.refusal
    assert "deployments.0.routing.exponent" in controls_of(exploration, view.toml)
    for path, value in (
        ("deployments.7.replicas", "2"),
        ("deployments", "{}"),
        ("deployments.0", "5"),
        ("workload", "5"),
        ("workload.num_requests", "abc"),
        ("workload.num_requests", "inf"),
        ("seed", "9" * 5000),
        ("seed", "[" * 5000),
    ):
        view = exploration.view({path: value})
        assert view.refusal, (path, value)
        assert view.groups
        assert not view.toml


def test_what_was_before_has_as_many_requests_and_is_of_the_file_as_it_is(small_file):
    more = small_scenario("olmoe-1b-7b", 8).replace("num_requests = 5", "num_requests = 2500")
    small_file.write_text(more, encoding="utf-8")
    exploration = Exploration(str(small_file))
    for is_quick, num_requests in ((True, 2000), (False, 2500)):
        before, now = exploration.start(is_quick=is_quick), exploration.view({}, is_quick=is_quick)
        assert now.results.summary["num_requests"].tolist() == [num_requests]
        cells = compare(before.results, now.results).rows[1][1:]
        assert not any(cell.hint for cell in cells)
    small_file.write_text(more.replace("2500", "30"), encoding="utf-8")
    assert exploration.start().results.summary["num_requests"].tolist() == [30]
    small_file.unlink()
    assert "no such file" in exploration.view({"seed": "3"}).refusal


@pytest.fixture
def served(small_file):
    command = [sys.executable, "-m", "simulator", "explore", str(small_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def status_of(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_only_whoever_has_the_address_is_served(served):
    _, address = served
    page, _, token = address.partition("?token=")
    assert status_of(page) == 403
    assert status_of(f"{page}?token={token[:-1]}") == 403
    assert status_of(f"{page}report/1") == 403
    assert status_of(f"{page}change", **{"Content-Type": "application/json"}) in (403, 405)
    assert status_of(address, Host="elsewhere.example") == 400
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    opener.open(address).close()
    for body, origin, status in (("{}", page, 400), ("{}", "http://127.0.0.1:1", 403)):
        headers = {"Origin": origin.rstrip("/"), "Content-Type": "application/json"}
        asked = urllib.request.Request(f"{page}change", body.encode(), headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(asked)
        assert refused.value.code == status
        refused.value.close()


def test_a_change_on_the_page_is_simulated_and_stays_in_its_address(served, browser):
    from playwright.sync_api import expect

    _, address = served
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    status, outcome = page.locator("#status"), page.locator("#outcome")
    expect(status).to_contain_text("Simulated in", timeout=120_000)
    page.frame_locator("iframe").locator("html[data-drawn]").wait_for()
    page.fill('[data-path="workload.rate_scale"]', "2")
    page.keyboard.press("Tab")
    expect(page.locator(".changes")).to_contain_text("workload.rate_scale = 2", timeout=60_000)
    expect(outcome).to_contain_text("was ")
    page.fill('[data-path="workload.rate_scale"]', "0")
    page.keyboard.press("Tab")
    expect(outcome).to_contain_text("rate_scale", timeout=60_000)
    assert page.locator("[role=alert]").count() == 1
    page.fill('[data-path="workload.rate_scale"]', "3")
    page.keyboard.press("Tab")
    expect(page.locator(".changes")).to_contain_text("= 3", timeout=60_000)
    expect(outcome).to_contain_text("was ", timeout=60_000)
    page.reload()
    expect(page.locator(".changes")).to_contain_text("= 3", timeout=60_000)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.select_option('[data-path="deployments.0.routing"]', "zipf")
    expect(outcome).to_contain_text("exponent", timeout=60_000)
    page.fill('[data-path="deployments.0.routing.exponent"]', "1.1")
    page.keyboard.press("Tab")
    page.locator('[data-path="workload.max_tokens"]').focus()
    page.keyboard.type("40")  # while it simulates: no change before it is done
    expect(page.locator(".changes")).to_contain_text("exponent = 1.1", timeout=60_000)
    expect(page.locator('[data-path="workload.max_tokens"]')).to_have_value("40")
    expect(page.locator(".changes li")).to_have_count(3)
    page.keyboard.type("0")
    page.keyboard.press("Tab")
    expect(page.locator(".changes")).to_contain_text("max_tokens = 400", timeout=60_000)
    page.locator('[data-undo="deployments.0.routing"]').click()
    expect(page.locator(".changes li")).to_have_count(2, timeout=60_000)
    expect(page.locator("[role=alert]")).to_have_count(0)
    page.locator('[data-undo="workload.max_tokens"]').click()
    expect(page.locator(".changes li")).to_have_count(1, timeout=60_000)
    page.locator("[data-undo]").click()
    expect(page.locator(".changes")).to_have_count(0, timeout=60_000)
    for width in (390, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []
    context.close()
