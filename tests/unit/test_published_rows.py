"""Rows of published tables: read strictly, or refused with a reason that names the column."""

import pandas as pd
import pytest

from simulator.base.data import shipped_folder
from simulator.lab.validation.published import topic_of, topics
from simulator.lab.validation.published.trtllm import TrtLLM
from simulator.lab.validation.published.wide_ep import WideEP
from simulator.lab.validation.tables import read_table

SHIPPED = shipped_folder() / "workloads" / "validation"


def read(topic, row):
    return topic()._read(row)


def shipped(name, row=0):
    table = pd.read_csv(SHIPPED / name, dtype=str, keep_default_na=False)
    return table.iloc[row].to_dict()


@pytest.mark.parametrize(
    ("topic", "changes", "reason"),
    [
        (TrtLLM, {"model": "GPT-9 1T"}, "no model file for 'GPT-9 1T'"),
        (TrtLLM, {"gpu": "TPU v9"}, "no accelerator file for 'TPU v9'"),
        (TrtLLM, {"precision": "half"}, "precision must be"),
        (TrtLLM, {"tp": "0"}, 'tp must be above 0, got "0"'),
        (TrtLLM, {"output": ""}, "missing key 'output'"),
        (TrtLLM, {"pp": "4"}, "pp = 4 is not modelled"),
        (TrtLLM, {"refused": "it was withdrawn"}, "it was withdrawn"),
        (WideEP, {"per": "watt"}, "per must be"),
        (WideEP, {"balanced": "?"}, "balanced"),
    ],
)
def test_a_wrong_cell_is_named(topic, changes, reason):
    name = {TrtLLM: "trtllm_max_throughput.csv", WideEP: "serving.csv"}[topic]
    assert reason in str(read(topic, {**shipped(name), **changes}))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100-sxm", "h100-sxm"),
        ("H100-80GB", "h100-sxm"),
        ("NVIDIA A100-PCIe-80GB", "a100-pcie"),
        ("AMD Instinct MI300X 192GB HBM3", "mi300x"),
    ],
)
def test_gpus_may_be_called_as_their_makers_do(text, name):
    assert read(TrtLLM, {**shipped("trtllm_max_throughput.csv"), "gpu": text}).gpu == name


def test_a_gain_compares_two_systems_that_differ_in_what_the_row_says():
    rows = pd.read_csv(SHIPPED / "serving.csv", dtype=str, keep_default_na=False)
    rows = rows.set_index("case", drop=False)
    case, other = read(WideEP, rows.loc["EPLB decode speedup"].to_dict()).parts()
    assert case.eplb
    assert other == case.model_copy(update={"eplb": False})
    case, other = read(WideEP, rows.loc["SGLang TP16 baseline prefill ratio"].to_dict()).parts()
    assert (case.num_gpus, case.ep, case.sequences, case.new) == (32, 32, 4, 4096)
    assert (other.num_gpus, other.ep, other.sequences, other.new, other.context) == (
        *(16, 1, 1, 512),
        1792,
    )
    (one,) = read(WideEP, rows.loc["SGLang decode EP72"].to_dict()).parts()
    assert (one.num_gpus, one.sequences, one.new, one.context) == (72, 256, 1, 2050)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.csv")), ids=lambda path: path.name)
def test_every_shipped_row_is_read_or_says_why_not(path):
    """A damaged cell must not hide among rows that are refused on purpose."""
    table = read_table(path)
    assert topic_of(set(table.values.columns)) in topics()
    if "case" in table.texts:
        assert (table.texts[["group", "case", "quantity", "unit", "source"]] != "").all().all()
        assert table.texts["licence"].ne("").all()
        assert not table.texts["case"].duplicated().any()
