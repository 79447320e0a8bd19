"""The traffic of a plan on its page."""

from __future__ import annotations

from simulator.report.document import facts_list
from simulator.report.markup import Markup, join, tag
from simulator.results.answer import Answer
from simulator.results.formats import number, seconds
from simulator.results.plan_sentences.traffic import explain_traffic


def traffic_section(answer: Answer) -> Markup | None:
    """Facts, and how they were chosen; None where the answer says no more than its header does."""
    found = answer.traffic
    if found is None or (
        found.lasts_s is None and not found.lead_requests and not found.lengthened_from
    ):
        return None
    lasts = "" if found.lasts_s is None else f", which arrive within {seconds(found.lasts_s)}"
    facts = {
        "Rate": f"{number(found.rate_per_s)} requests/s",
        "Prompts": f"{number(found.mean_input)} tokens on average",
        "Answers": f"{number(found.mean_output)} tokens on average",
        "Requests judged": f"{found.num_requests:,}{lasts}",
        "Served before them": f"{found.lead_requests:,}" if found.lead_requests else "",
    }
    sentences = (tag("li", sentence) for sentence in explain_traffic(found))
    return join([facts_list(facts), tag("ul", *sentences, class_="notes below")])
