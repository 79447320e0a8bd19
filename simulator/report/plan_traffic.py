"""The traffic of a plan on its page."""

from __future__ import annotations

from simulator.results.answer import TrafficFacts
from simulator.results.formats import number, seconds


def describe_traffic(found: TrafficFacts | None) -> dict[str, str]:
    """Facts on the traffic; none where the answer says no more than its header does."""
    if found is None or (
        found.lasts_s is None and not found.lead_requests and not found.lengthened_from
    ):
        return {}
    lasts = "" if found.lasts_s is None else f", which arrive within {seconds(found.lasts_s)}"
    return {
        "Rate": f"{number(found.rate_per_s)} requests/s",
        "Prompts": f"{number(found.mean_input)} tokens on average",
        "Answers": f"{number(found.mean_output)} tokens on average",
        "Requests judged": f"{found.num_requests:,}{lasts}",
        "Served before them": f"{found.lead_requests:,}" if found.lead_requests else "",
    }
