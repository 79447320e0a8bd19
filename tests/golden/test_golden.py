"""Did a published number move? ``make golden`` writes the file again; read its difference before committing it."""

import os
from pathlib import Path

import pandas as pd
import pytest

from simulator.run import run_scenario
from simulator.scenario import load_scenario

NUMBERS = Path(__file__).parent / "numbers.csv"
SCENARIOS = ("mixtral_vs_llama2", "deepseek_v3_vs_llama_405b", "gpt_oss_vs_qwen3_32b")
COLUMNS = ["ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "output_tokens_per_s", "load_imbalance", "mfu", "mbu"]


def numbers_of(name):
    scenario, path = load_scenario(name, ["workload.num_requests=300"])
    summary = run_scenario(scenario, path).summary
    return summary[["deployment", *COLUMNS]].assign(scenario=name).set_index(["scenario", "deployment"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_numbers_of_the_shipped_scenarios(name):
    found = numbers_of(name)
    if os.environ.get("MOESIM_UPDATE_GOLDEN"):
        known = pd.read_csv(NUMBERS, index_col=[0, 1]) if NUMBERS.exists() else found.iloc[:0]
        kept = known[known.index.get_level_values(0) != name]
        pd.concat([kept, found]).sort_index().to_csv(NUMBERS, float_format="%.9g")
    wanted = pd.read_csv(NUMBERS, index_col=[0, 1]).loc[[name]]
    pd.testing.assert_frame_equal(found.sort_index(), wanted.sort_index(), rtol=1e-6, check_dtype=False)
