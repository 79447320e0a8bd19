"""Serving commands on a plan's page: the same commands in shorter lines, and those that are alike
folded away.
"""

import subprocess

import pytest

from simulator.report.plan_page import list_servers, render
from simulator.results.answer import Answer, Handover
from simulator.results.answer.folder import PlanResults
from simulator.results.answer.handover import by_flag
from tests.report.plan_answers import RUN, answer


def test_servers_that_differ_in_numbers_only_are_folded():
    commands = [
        {
            "deployment": "d",
            "name": f"d: server {n}",
            "command": f"serve --port {8000 + n}",
            "not_expressed": ["as on all"],
        }
        for n in range(4)
    ]
    commands.append(
        {
            "deployment": "d",
            "name": "d: router",
            "command": "route --port 30000",
            "not_expressed": ["as on all"],
        }
    )
    (shown,) = list_servers(Handover.model_validate({"commands": commands}))
    assert shown.notes == ["as on all"]
    servers, router = shown.commands
    assert [name for name, _ in servers] == [f"server {n}" for n in range(4)]
    assert [text for _, text in router] == ["route --port 30000"]
    page = render(PlanResults(RUN, Answer.model_validate(answer(handover={"commands": commands}))))
    assert "<summary>3 more like it: server 1, server 2, ...</summary>" in page
    assert [page.count(f"<h4>Server {n}</h4>") for n in range(4)] == [1] * 4


def test_where_the_flags_were_read_is_said_once():
    rows = [
        {"deployment": "d", "name": f"d: {n}", "command": "serve", "flags_read": "Flags of 1.2."}
        for n in range(2)
    ]
    (shown,) = list_servers(Handover.model_validate({"commands": rows}))
    assert shown.sources == ["Flags of 1.2."]


@pytest.mark.parametrize(
    "arguments",
    [
        "a --b 1",
        'model --first-flag-that-is-long \'a --b "c"\' --second-flag-that-is-long "it\'s --x" --third-flag-that-is-long 3 --fourth',
        "A=1 model --json '{\"k\": [1, 2]}' --another-flag-that-is-long-enough x --and-one-more-flag-that-is-long y --last",
    ],
)
def test_a_command_over_several_lines_is_the_same_command(arguments):
    shown = by_flag(f"printf '%s|' {arguments}")
    whole, cut = (
        subprocess.run(["sh", "-c", text], capture_output=True, check=True)
        for text in (f"printf '%s|' {arguments}", shown)
    )
    assert cut.stdout == whole.stdout
    assert (len(shown.splitlines()) > 2) == (len(arguments) > 60)


def test_what_a_shell_reads_to_its_end_mark_stays_as_it_is():
    script = "cat > x.yml <<'EOF'\n" + "key: " + "--value " * 20 + "\nEOF\nserve x.yml --port 1"
    assert by_flag(script) == script
