"""Published figures against the product's own plans and engine. Tolerances stand beside what was
seen; nothing is fitted on figures of throughput.

The throughput targets are a median error of 12 % and a 90th percentile of 25 %, and 8 % and 15 %
for ratios of a mixture of experts to a dense model; ``moesim validate published`` shows them for
all cases, which one worker answers for all modules of the group.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.data import shipped_folder
from simulator.base.errors import UserError
from simulator.lab.results.scores import SCORE_COLUMNS, is_answered
from simulator.lab.validation.published import (
    RELEASE_UNSAID,
    run,
    topic_of,
    topics,
)
from tests.shared import shared_file

pytestmark = pytest.mark.xdist_group(
    "published"
)  # what a module runs is run once, not once a worker
SHIPPED = shipped_folder() / "workloads" / "validation"
TOPIC_OF = {
    "alltoall.csv": "alltoall",
    "mlperf_inference.csv": "mlperf",
    "offload.csv": "offload",
    "routing_skew.csv": "routing_skew",
    "serving.csv": "wide_ep",
    "serving_pairs.csv": "serving_pairs",
    "trtllm_max_throughput.csv": "trtllm",
    "training.csv": "training",
    "speculation.csv": "speculation",
}


def table(name):
    return pd.read_csv(SHIPPED / name, dtype=str, keep_default_na=False)


def answered(folder, rows):
    path = folder / "cases.csv"
    rows.to_csv(path, index=False)
    return run(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


def of_topic(published, name, group):
    """The answers of one topic, whose groups of scores begin alike."""
    table, rows = published.table, published.rows
    chosen = rows["group"].str.startswith(group)
    return replace(published, table=table[table["topic"] == name], rows=rows[chosen])


@pytest.fixture(scope="module")
def mlperf(published):
    """One machine of four figures."""
    found, machine = of_topic(published, "mlperf", "MLPerf"), "v4.1 NVIDIA DGX-H100_H100-SXM-80GBx8"
    return replace(
        found,
        table=found.table[found.table["case"].str.contains(machine, regex=False)],
        rows=found.rows[found.rows["subject"].str.contains(machine, regex=False)],
    )


@pytest.fixture(scope="module")
def trtllm(published):
    return of_topic(published, "trtllm", "TensorRT-LLM")


@pytest.fixture(scope="module")
def skew(published):
    return of_topic(published, "routing_skew", "routing skew")


@pytest.fixture(scope="module")
def wide(published):
    return of_topic(published, "wide_ep", "wide EP")


def errors(found, quantity):
    rows = found.rows[(found.rows["quantity"] == quantity) & is_answered(found.rows["status"])]
    return (rows["predicted"] / rows["measured"] - 1).abs()


def test_every_shipped_table_has_its_topic():
    assert set(TOPIC_OF.values()) == set(topics())
    for name, topic in TOPIC_OF.items():
        assert topic_of(set(table(name).columns)) == topic


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("alltoall.csv", "latency_us"),
        ("mlperf_inference.csv", "tokens_per_s"),
        ("offload.csv", "value"),
        ("routing_skew.csv", "value"),
        ("serving.csv", "value"),
        ("trtllm_max_throughput.csv", "value"),
    ],
)
def test_shipped_figures_are_those_of_their_sources(name, column):
    """The rows as they were read in the sources; ``derived`` ones come of a bandwidth there."""
    source = pd.read_csv(shared_file(f"measurements/published/{name}"), dtype=str)
    ours = table(name)
    assert len(source) == len(ours)
    read = pd.to_numeric(source[column], errors="coerce").to_numpy()
    kept = pd.to_numeric(ours["value"], errors="coerce").to_numpy()
    is_derived = ours.get("derived", pd.Series("", index=ours.index)).eq("true").to_numpy()
    np.testing.assert_array_equal(kept[~is_derived], read[~is_derived])
    assert np.isnan(read[is_derived]).all()
    assert (source["source"].str.replace(" @", "@") == ours["source"]).all()


def test_a_table_of_no_topic_is_refused(folder):
    with pytest.raises(UserError, match="no published topic"):
        answered(folder, pd.DataFrame({"id": ["C01"], "topic": ["all-to-all"], "target": ["77"]}))


def test_every_row_has_an_answer_or_a_reason(published):
    assert list(published.rows.columns) == list(SCORE_COLUMNS)
    assert set(published.table["topic"]) == set(topics())
    status = published.table["status"]
    assert status.str.match(r"^(ok$|extrapolated: .|unsupported: .)").all()
    answers = published.table[is_answered(status)]
    assert (answers["low"] <= answers["predicted"]).all()
    assert (answers["predicted"] <= answers["high"]).all()
    assert published.table.loc[~is_answered(status), "predicted"].isna().all()


def test_rows_of_unknown_models_gpus_and_splits_are_answered_one_by_one(folder):
    rows = table("trtllm_max_throughput.csv")
    one = rows[(rows["model"] == "llama-3.1-8b") & (rows["input"] == "1000")].iloc[0]
    other = {
        "known": {},
        "model": {"model": "GPT-9 1T"},
        "gpu": {"gpu": "TPU v9"},
        "split": {"pp": "4"},
        "length": {"input": "nan"},
        "format": {"precision": "?"},
        "H200": {"gpu": "H200-141GB"},
        "A100": {"gpu": "A100-80GB", "precision": "bf16"},
        "heads": {"tp": "64"},
    }
    found = answered(
        folder, pd.DataFrame([{**one, **change} for change in other.values()]).fillna("")
    ).table
    good = is_answered(found["status"])
    assert dict(zip(other, good, strict=True)) == {
        **dict.fromkeys(other, False),
        **dict.fromkeys(["known", "H200", "A100"], True),
    }
    value = dict(zip(other, found["predicted"], strict=True))
    assert value["H200"] > value["known"] > value["A100"]


def test_measured_figures_are_not_looked_at(folder):
    rows = table("trtllm_max_throughput.csv")
    rows = rows[(rows["model"] == "mixtral-8x7b") & (rows["tp"] == "2") & (rows["input"] == "1000")]
    without = answered(folder, rows.drop(columns="value"))
    assert without.rows.empty
    assert np.array_equal(without.table["predicted"], answered(folder, rows).table["predicted"])


def test_mlperf_v41_on_h100(mlperf):
    """mlcommons/inference_results_v4.1, closed, NVIDIA: 24,525 offline and 21,606 as a server with
    Llama-2-70B, 52,416 and 50,796 with Mixtral-8x7B, whose expert kernels were slower in that
    year's releases than in those that were measured.
    """
    rows = mlperf.rows[mlperf.rows["quantity"] == "throughput"]
    assert len(rows) == 4
    is_dense = rows["subject"].str.contains("llama2")
    assert ((rows["predicted"] / rows["measured"] - 1).abs()[is_dense] < 0.25).all()
    assert ((rows["low"] < rows["measured"]) & (rows["measured"] < rows["high"]))[~is_dense].all()


def test_mlperf_splits_are_found(mlperf):
    """Mixtral as 8 replicas of one GPU, Llama as 4 of two: the best that fits, as submitted."""
    because = dict(
        zip(
            zip(mlperf.table["model"], mlperf.table["scenario"], strict=True),
            mlperf.table["because"],
            strict=True,
        )
    )
    assert because["mixtral-8x7b", "offline"].startswith("8 replicas of TP 1")
    assert because["llama-2-70b", "offline"].startswith("4 replicas of TP 2")


def test_mlperf_advantage_of_the_mixture_of_experts(mlperf):
    """2.14 times as many tokens a second offline, 2.35 as a server; see above."""
    rows = mlperf.rows[mlperf.rows["quantity"] == "ratio"]
    assert len(rows) == 2
    assert ((rows["low"] < rows["measured"]) & (rows["measured"] < rows["high"])).all()
    assert (rows["predicted"] > 1.5).all()


def test_tensorrt_llm_throughput(trtllm):
    """NVIDIA/TensorRT-LLM 0.17, performance overview, 79 figures. Seen: 4 % and 13 %, ratios 6 %
    and 17 %.
    """
    assert errors(trtllm, "throughput").median() < 0.12
    assert errors(trtllm, "throughput").quantile(0.9) < 0.25
    assert errors(trtllm, "ratio").median() < 0.12


def test_tensorrt_llm_memory_cliff(trtllm):
    """Llama-3.1-70B at 1,000/1,000: 840 tokens/s on one H100, whose weights leave little cache, and
    4,391 on two: 5.2 times.
    """
    square = trtllm.table[trtllm.table["output"] == "1000"]
    rows = square.set_index(["model", "tp", "input"])["predicted"]
    two, one = (rows["llama-3.1-70b", split, "1000"] for split in ("2", "1"))
    assert two / one == pytest.approx(4390.53 / 839.97, rel=0.25)


def test_skew_of_deepseek_r1_with_and_without_copies(skew):
    """NVIDIA/TensorRT-LLM tech blog 4: 1.564 falls to 0.109 with 288 slots on 32 ranks, 0.115 on
    36. Seen: +2 %, +2 %, -5 %.
    """
    assert len(errors(skew, "imbalance")) == 6
    assert (errors(skew, "imbalance") < 0.20).all()


def test_wide_expert_parallelism(wide):
    """LMSYS, "Deploying DeepSeek with PD disaggregation and large-scale expert parallelism", 2025:
    22,282 tokens/s a node in decode over 72 GPUs; in prefill over 32, 59,337 where routing is
    balanced and 50,302 where it is not. Seen: +4 %, +18 %, +31 %: what was measured in place is
    slower than the sum of its kernels, and uneven routing takes 6 % of the time here and 15 %
    there.
    """
    wrong = errors(wide, "throughput").groupby(wide.rows["subject"]).max()
    assert wrong["SGLang decode EP72"] < 0.15
    assert wrong["SGLang prefill perfect EPLB"] < 0.25
    assert wrong["SGLang prefill EP32, prompt 4000"] < 0.40
    value = wide.table.set_index("case")["predicted"]
    assert value["SGLang prefill EP32, prompt 4000"] < 0.97 * value["SGLang prefill perfect EPLB"]


def test_copies_of_hot_experts_gain_as_published(wide):
    """The same: 1.49 times in prefill, 2.54 times in decode. Seen: 1.43 and 2.43 times."""
    gain = wide.table.set_index("case")["predicted"]
    assert gain["EPLB prefill speedup"] == pytest.approx(1.49, rel=0.10)
    assert gain["EPLB decode speedup"] == pytest.approx(2.54, rel=0.10)


def test_two_batches_gain_where_there_is_much_to_hide_and_lose_where_there_is_little(wide):
    """The same: +25.5 % at 256 tokens a GPU and -27 % at 32. The sign must be right."""
    gain = wide.table.set_index("case")["predicted"]
    assert 1.1 < gain["TBO decode speedup bs256"] < 1.6
    assert 0.6 < gain["TBO decode slowdown bs32"] < 0.95


def test_a_server_rate_lasts(mlperf):
    """Near the largest rate a batch grows for minutes: a rate that five minutes pass may not last,
    so no server beats its own offline run, which ends with few requests at once, by much. Seen: +2
    % and +4 %.
    """
    value = dict(
        zip(
            zip(mlperf.table["model"], mlperf.table["scenario"], strict=True),
            mlperf.table["predicted"],
            strict=True,
        )
    )
    for model in ("llama-2-70b", "mixtral-8x7b"):
        assert value[model, "server"] < 1.10 * value[model, "offline"]


@pytest.fixture(scope="module")
def splits(folder):
    rows = table("serving_pairs.csv")
    return answered(folder, rows[rows["id"].str.startswith("dsr1_b200_sglang_fp8_agg_1024x1024")])


def test_spread_experts_are_slower_in_small_deployments(splits):
    """DeepSeek-R1 on 8 B200 by SGLang, 1,024 tokens in and out: 12-18 % fewer tokens a second with
    experts spread, at 4 to 64 requests in flight, without a trend. Seen: 3-10 %, less at more load.
    """
    rows = splits.rows[splits.rows["group"] == RELEASE_UNSAID]
    assert len(rows) == 5
    assert (rows["measured"] < 0.9).all()
    assert (rows["predicted"] < 1.0).all()
    assert len(splits.rows) == 6
