"""The shipped workloads against the data they imitate: within 10 % for the default workload, with
the default seed and others.

Tolerances: an hour of requests is one sample of a random process. Over 40 seeds the default
workload's variance over mean in 60 s windows has a standard deviation of 6 %, in 10 s windows 5 %,
everything else about 2 % or less; so single seeds other than the default may miss 10 %, and the
median of several must not.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.config.workload import WorkloadSpec
from simulator.workload.requests import describe, load_requests, read_trace
from tests.shared import shared_file

DEFAULT_SEED = 0
SEEDS = (1, 2, 3, 4, 5)
BURSTINESS = ("rate_per_s", "duration_s", "iat_cv", "fano_1s", "fano_10s", "fano_60s")
LENGTHS = tuple(
    f"{side}.{name}" for side in ("input", "output") for name in ("mean", "p50", "p90", "p99")
)

PUBLISHED_CONV = {
    **dict(zip(BURSTINESS, (5.53, 3502, 1.09, 1.39, 3.86, 16.1), strict=True)),
    **dict(zip(LENGTHS, (1155, 1020, 2735, 4142, 211, 129, 424, 601), strict=True)),
}
PUBLISHED_CODE = {
    **dict(zip(BURSTINESS, (2.57, 3436, 13.15, 13.2, 71.6, 164), strict=True)),
    **dict(zip(LENGTHS, (2048, 1469, 5188, 7436, 27.9, 13, 55, 251), strict=True)),
}


def statistics(trace):
    found = describe(trace)
    flat = {name: value for name, value in found.items() if isinstance(value, float)}
    return flat | {
        f"{side}.{name}": value
        for side in ("input", "output")
        for name, value in found[side].items()
    }


def generated(name, seed=DEFAULT_SEED, **limits):
    return statistics(load_requests(WorkloadSpec(requests=name, **limits), Path("."), seed))


def medians(name, seeds):
    found = [generated(name, seed) for seed in seeds]
    return {key: float(np.median([statistic[key] for statistic in found])) for key in found[0]}


def real(name):
    return statistics(read_trace(shared_file(f"traces/requests/{name}")))


def assert_close(found, target, names, tolerance):
    missed = {
        name: (found[name], target[name])
        for name in names
        if found[name] != pytest.approx(target[name], rel=tolerance)
    }
    assert not missed, f"(found, target) beyond {tolerance:.0%}"


@pytest.fixture(scope="module")
def conversation():
    return real("azure2023/AzureLLMInferenceTrace_conv.csv")


@pytest.mark.measured
@pytest.mark.parametrize("names", [BURSTINESS, LENGTHS], ids=["burstiness", "lengths"])
def test_the_default_workload_with_the_default_seed_is_within_ten_percent(conversation, names):
    assert_close(generated("azure-conv"), conversation, names, 0.10)


@pytest.mark.measured
@pytest.mark.parametrize("names", [BURSTINESS, LENGTHS], ids=["burstiness", "lengths"])
def test_the_default_workload_is_within_ten_percent_over_several_seeds(conversation, names):
    assert_close(medians("azure-conv", SEEDS), conversation, names, 0.10)


@pytest.mark.measured
def test_the_default_workload_keeps_the_correlation_of_lengths(conversation):
    assert generated("azure-conv")["input_output_correlation"] == pytest.approx(
        conversation["input_output_correlation"], abs=0.03
    )


def test_the_default_workload_is_within_ten_percent_of_the_published_figures():
    """The same without the file, which only the published statistics stand for."""
    assert_close(generated("azure-conv"), PUBLISHED_CONV, BURSTINESS + LENGTHS, 0.10)
    assert_close(medians("azure-conv", SEEDS), PUBLISHED_CONV, BURSTINESS + LENGTHS, 0.10)


def test_no_seed_of_the_default_workload_is_far_off():
    for seed in range(20):
        assert_close(generated("azure-conv", seed), PUBLISHED_CONV, BURSTINESS + LENGTHS, 0.25)


def test_code_completion_is_near_its_published_figures_in_the_median():
    """Half of that hour is silence, in pauses of a minute: single seeds differ by half, so the
    median of 21 is what is compared.
    """
    found = medians("azure-code", range(21))
    assert_close(found, PUBLISHED_CODE, LENGTHS, 0.10)
    assert_close(found, PUBLISHED_CODE, BURSTINESS, 0.15)


@pytest.mark.measured
def test_sharegpt_lengths_are_those_of_the_file():
    target = real("lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz")
    assert_close(generated("sharegpt-like", num_requests=20_000), target, LENGTHS, 0.05)


@pytest.mark.measured
def test_reasoning_has_the_rate_of_each_hour_and_the_lengths_of_the_client_models():
    day = read_trace(shared_file("traces/requests/servegen/deepseek-r1_clients_0-35.tar.xz"))
    made = load_requests(
        WorkloadSpec(requests="deepseek-r1-reasoning", duration_s=86_400.0), Path("."), DEFAULT_SEED
    )
    per_hour = [
        np.bincount((trace.arrival_s // 3600).astype(int), minlength=24)[:24]
        for trace in (made, day)
    ]
    np.testing.assert_allclose(*per_hour, rtol=0.02)
    assert_close(statistics(made), statistics(day), LENGTHS, 0.10)
