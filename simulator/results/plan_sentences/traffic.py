"""Sentences on the requests that a plan was judged by."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.results.answer import Answer, DeploymentRow, TrafficFacts
from simulator.results.formats import number, seconds

_OFTEN_PREEMPTED = 0.02
"""Share of requests computed again from which on it is worth a word: less is lost in the noise."""
_FAR_FROM_ASKED = 0.03
"""Relative difference between the drawn rate and the one asked for from which on it is worth a
word: a size of 33 replicas changes by one."""


def tell_rate(traffic: TrafficFacts) -> str:
    """Rate of the judged requests, beside the one that was asked for where the two differ."""
    drawn, asked = f"{traffic.rate_per_s:.3g}", f"{traffic.asked_rate_per_s or 0:.3g}"
    beside = "" if traffic.asked_rate_per_s is None or drawn == asked else f", asked for {asked}"
    return f"{drawn} a second on average{beside}"


def tell_traffic(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Describe the requests that everything was simulated on."""
    traffic = answer.traffic
    for note in () if traffic is None else traffic.notes:
        yield f"Of the log: {note}."
    if traffic is not None and traffic.is_steady is False:
        yield (
            f"The {traffic.num_requests:,} requests arrive "
            f"within {seconds(traffic.lasts_s or 0.0)}, which is too short for a steady "
            "state: traffic that goes on may need more."
        )
    if best.preempted_share >= _OFTEN_PREEMPTED:
        yield (
            f"{100 * best.preempted_share:.0f} % of the requests lose their KV blocks to others "
            "and are computed again, which the latencies contain: fewer sequences at once "
            "(space.max_sequences) or more memory would spare that work."
        )
    if best.too_long_share:
        share = (
            "fewer than 0.1 %"
            if best.too_long_share < 0.001
            else f"{100 * best.too_long_share:.1f} %"
        )
        yield (
            f"{share} of the requests are longer than {best.model}'s context, "
            "and are counted as served."
        )


def explain_traffic(traffic: TrafficFacts) -> Iterator[str]:
    """Describe the choice of the judged requests."""
    if traffic.asked_rate_per_s is not None:
        beside = traffic.rate_per_s / traffic.asked_rate_per_s - 1
        if abs(beside) >= _FAR_FROM_ASKED:
            yield (
                f"They happen to arrive at {traffic.rate_per_s:.3g} a second, where the workload "
                f"asks for {traffic.asked_rate_per_s:.3g}: everything is sized for the former. "
                "Bands and probabilities hold other samples with rates of their own; more "
                "requests (workload.num_requests) come nearer."
            )
    if traffic.lead_requests:
        yield (
            f"The first {traffic.lead_requests:,} requests are served and not judged: "
            "a cluster that starts empty looks faster than it is."
        )
    if traffic.stay_s and traffic.lasts_s is not None:
        steady = {True: ": long enough for a steady state", False: ": too short for a steady state"}
        yield (
            f"A request stays {seconds(traffic.stay_s)} where the targets are just kept; "
            f"those that are judged arrive over {number(traffic.lasts_s / traffic.stay_s)} times "
            f"as long{'' if traffic.is_steady is None else steady[traffic.is_steady]}."
        )
    if traffic.num_on_stretch:
        yield (
            f"Losses, headroom, bands and what-ifs are simulated on the {traffic.num_on_stretch:,} "
            "requests of the busiest stretch, enough for the highest percentile that is asked for."
        )
    if traffic.lengthened_from:
        yield (
            f"The workload asks for {traffic.lengthened_from:,} requests; more were generated, "
            "so that it lasts long enough."
        )


def warn_of_short_traffic(traffic: TrafficFacts | None) -> str:
    """The warning that the traffic is too short to judge by; empty where it is not."""
    if traffic is None or traffic.is_steady is not False:
        return ""
    lasts = f" of {seconds(traffic.lasts_s)}" if traffic.lasts_s is not None else ""
    stay = f", while one request stays {seconds(traffic.stay_s)}" if traffic.stay_s else ""
    return (
        "The traffic is too short to show a steady state: its requests arrive within a "
        f"stretch{lasts}{stay}. Under load that lasts, more GPUs may be needed than this plan "
        "says. Plan with a longer trace, or a longer peak."
    )
