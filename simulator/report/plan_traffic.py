"""The traffic of a plan in plain words: what was served, what was judged, and whether it shows a
steady state.
"""

from __future__ import annotations

from typing import Any

from simulator.report.document import facts_list
from simulator.report.markup import Markup, join, tag
from simulator.results.formats import number, seconds


def traffic_section(answer: dict[str, Any]) -> Markup | None:
    """Facts, and how they were chosen; None where the answer says no more than its header does."""
    found = answer.get("traffic") or {}
    if (
        found.get("lasts_s") is None
        and not found.get("lead_requests")
        and not found.get("lengthened_from")
    ):
        return None
    lasts = seconds(found["lasts_s"]) if found.get("lasts_s") is not None else ""
    facts = {
        "Rate": f"{number(found['rate_per_s'])} requests/s",
        "Prompts": f"{number(found['mean_input'])} tokens on average",
        "Answers": f"{number(found['mean_output'])} tokens on average",
        "Requests judged": f"{found['num_requests']:,}"
        + (f", which arrive within {lasts}" if lasts else ""),
        "Served before them": f"{found['lead_requests']:,}" if found.get("lead_requests") else "",
    }
    return join(
        [
            facts_list(facts),
            tag(
                "ul", *(tag("li", sentence) for sentence in _sentences(found)), class_="notes below"
            ),
        ]
    )


def _sentences(found: dict[str, Any]) -> list[str]:
    said = []
    if found.get("lead_requests"):
        said.append(
            f"The first {found['lead_requests']:,} requests are served and not judged: "
            "a cluster that starts empty looks faster than it is."
        )
    if found.get("stay_s") and found.get("lasts_s") is not None:
        stays = found["lasts_s"] / found["stay_s"]
        is_steady = found.get("is_steady")
        steady = (
            ""
            if is_steady is None
            else f": {'long enough' if is_steady else 'too short'} for a steady state"
        )
        said.append(
            f"A request stays {seconds(found['stay_s'])} where the targets are just kept; "
            f"those that are judged arrive over {number(stays)} times as long{steady}."
        )
    if found.get("lengthened_from"):
        said.append(
            f"The workload asks for {found['lengthened_from']:,} requests; more were generated, "
            "so that it lasts long enough."
        )
    return said


def warning(answer: dict[str, Any]) -> str:
    """That the traffic is too short to judge by; empty where it is not."""
    found = answer.get("traffic") or {}
    if found.get("is_steady", True) is not False:
        return ""
    lasts = f" of {seconds(found['lasts_s'])}" if found.get("lasts_s") is not None else ""
    stay = f", while one request stays {seconds(found['stay_s'])}" if found.get("stay_s") else ""
    return (
        "The traffic is too short to show a steady state: its requests arrive within a "
        f"stretch{lasts}{stay}. Under load that lasts, more GPUs may be needed than this plan "
        "says. Plan with a longer trace, or a longer peak."
    )
