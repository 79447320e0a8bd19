"""Serving commands on a plan's page: the same commands in shorter lines, and those that are alike
folded away.
"""

import subprocess

import pytest

from simulator.report.plan_handover import by_flag, describe_handover
from simulator.results.answer import Handover


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
    (shown,) = describe_handover(Handover.model_validate({"commands": commands})).servers
    assert shown.notes == ["as on all"]
    servers, router = shown.commands
    assert servers.summary == "3 more like it: server 1, server 2, ..."
    assert [one.title for one in servers.others] == ["Server 1", "Server 2", "Server 3"]
    assert router.first.text == "route --port 30000"
    assert not router.others


def test_where_the_flags_were_read_is_said_once():
    rows = [
        {"deployment": "d", "name": f"d: {n}", "command": "serve", "flags_read": "Flags of 1.2."}
        for n in range(2)
    ]
    (shown,) = describe_handover(Handover.model_validate({"commands": rows})).servers
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
