"""What every family of kernels promises for any table with its columns. Families are discovered,
never listed.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.config.calibration import CalibrationFile, load_calibration
from simulator.lab.validation import Answers
from simulator.lab.validation.suites import families, family_of, suite_of
from simulator.lab.validation.tables import read_table, values_of

SAMPLES = Path(__file__).parents[1] / "validation" / "samples"
HEADERS = (
    "gpu,gemm_dtype,m,n,k,latency_ms",
    "gpu,phase,attn_dtype,kv_cache_dtype,batch_size,isl,step,num_heads,num_key_value_heads,head_dim,window_size,latency_ms",
    "gpu,engine,engine_ver,phase,kernel_source,mla_dtype,kv_cache_dtype,gemm_type,num_heads,batch_size,isl,step,tp_size,latency_ms",
    "gpu,engine,moe_dtype,model,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,num_tokens,latency_ms",
    "gpu,engine,engine_ver,phase,moe_dtype,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,num_tokens,latency_ms",
    "gpu,engine_ver,op_name,moe_dtype,moe_kernel,num_tokens,dp_num_tokens,rank0_num_tokens,hidden_size,inter_size,topk,num_experts,num_slots,moe_tp_size,moe_ep_size,distribution,latency_ms",
    "gpu,engine,engine_ver,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_avg_t_us,combine_avg_t_us",
    "gpu,engine,engine_ver,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_sms,dispatch_transmit_us,dispatch_notify_us,combine_sms,combine_transmit_us,combine_notify_us",
    "gpu,engine,engine_ver,comm_backend,phase,comm_dtype,ep_size,node_num,hidden_size,topk,num_experts,num_tokens,sms,transmit_us,notify_us,latency",
    "gpu,nccl_ver,op_name,nccl_dtype,num_gpus,message_elements,latency_ms",
    "gpu,engine,engine_ver,kernel_source,allreduce_dtype,num_gpus,message_size,latency_ms",
)
JUNK = ("", "unheard of", "-1", "0", "1e30", "0.5", "inf", "nan")


def answered(name, table):
    """The family's answers, after what holds for all of them was checked."""
    family = family_of(name)
    measures = family.measures_of(table)
    answers: Answers = family.answer(table)
    shape = (len(table), len(measures))
    assert answers.seconds.shape == answers.low.shape == answers.high.shape == shape
    assert len(answers.status) == len(answers.group) == len(table)
    status = np.array([text.split(":")[0] for text in answers.status])
    assert set(status) <= {"ok", "extrapolated", "unsupported"}
    assert all(
        text == "ok" or len(text.split(": ", 1)[1].strip()) > 3 for text in answers.status
    ), "says why"
    none = status == "unsupported"
    assert np.isnan(answers.seconds[none]).all()
    # A row with several measures may lack one, but not all.
    told = ~np.isnan(answers.seconds)
    assert told[~none].any(axis=1).all()
    seconds, low, high = (part[told] for part in (answers.seconds, answers.low, answers.high))
    assert (np.isfinite(seconds) & (seconds >= 0)).all()
    assert ((low <= seconds) & (seconds <= high) & (low >= 0) & np.isfinite(high)).all()
    return answers


def seconds_by_status(answers):
    return answers.seconds, [text.split(":")[0] for text in answers.status]


@pytest.mark.parametrize("header", HEADERS)
def test_junk_is_unsupported_and_breaks_nothing(header):
    columns = header.split(",")
    name = suite_of(pd.DataFrame({column: ["1"] for column in columns}))
    assert name in families(), "no family reads this table"
    for junk in JUNK:
        answers = answered(
            name, values_of(pd.DataFrame({column: [junk] * 3 for column in columns}))
        )
        assert {text.split(":")[0] for text in answers.status} == {"unsupported"}


TABLES = sorted({path.name for path in SAMPLES.glob("*.csv")} - {"serving_points.csv"})
"""Samples of kernels and exchanges."""


def sample(name, count):
    values = read_table(SAMPLES / name).values
    return values.sample(min(count, len(values)), random_state=3).reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_answers_do_not_depend_on_what_was_measured_nor_on_other_rows(name):
    table = sample(name, 200)
    family = suite_of(table)
    seconds, status = seconds_by_status(answered(family, table))
    measured = [measure.column for measure in family_of(family).measures_of(table)]
    wild, wild_status = seconds_by_status(
        answered(family, table.assign(**dict.fromkeys(measured, 1e9)))
    )
    np.testing.assert_array_equal(wild, seconds)
    assert wild_status == status
    bare, bare_status = seconds_by_status(answered(family, table.drop(columns=measured)))
    np.testing.assert_array_equal(bare, seconds)
    assert bare_status == status
    backwards, _ = seconds_by_status(answered(family, table.iloc[::-1]))
    np.testing.assert_allclose(backwards[::-1], seconds, rtol=1e-9)
    few, _ = seconds_by_status(answered(family, table.iloc[:5]))
    np.testing.assert_allclose(few, seconds[:5], rtol=1e-9)


@pytest.mark.parametrize("name", TABLES)
def test_a_gpu_that_nobody_knows_is_not_answered(name):
    table = sample(name, 20).assign(gpu="rubin_ultra")
    answers = answered(suite_of(table), table)
    assert all(
        text.startswith("unsupported: ") and "rubin_ultra" in text for text in answers.status
    )


@pytest.mark.parametrize("name", families())
def test_a_family_says_what_it_reads_and_which_table_it_fits(name):
    family = family_of(name)
    assert family.calibrates in CalibrationFile.model_fields
    assert family.sources
    assert all(required and measured for required, measured in family.list_layouts())


ONE_KIND = ("engine", "engine_ver", "moe_dtype", "moe_kernel", "kernel_source", "model", "op_name")
"""Columns that a fit tells entries apart by: rows of one entry say most of its coefficients."""


def told_by_known_parameters(family, source):
    """Sizes of a sample as rows of one engine and format of experts on H100 that take what the
    shipped calibration says, to the last digit; none where a source has no sample.
    """
    path = SAMPLES / Path(source).name.removesuffix(".gz")
    if not path.exists():
        return None
    table = read_table(path).values.query("gpu == 'h100'")
    alike = [name for name in ONE_KIND if name in table.columns]
    table = table.assign(**{name: table[name].mode()[0] for name in alike})
    table = table.drop_duplicates(ignore_index=True)
    answers = family.answer(table)
    for number, measure in enumerate(family.measures_of(table)):
        table[measure.column] = answers.seconds[:, number] / measure.unit_s
    return table[[status == "ok" for status in answers.status]].reset_index(drop=True)


COEFFICIENTS_BACK = {
    # Rows of kernels whose floor hides the links say little of the links.
    "alltoall": 0.95,
    # Copies and ranks in large messages of an engine's own kernels, which a faster protocol hides.
    "collective": 0.85,
    # One shape, and hardly a rank without a token for each of its experts: the depth of products
    # and the touched experts cost what the slots do.
    "eplb": 0.7,
    # One coefficient of rereading, which two of 42 rows show.
    "gemm": 0.93,
    # Arithmetic and the softmax of prompts take time in one proportion, whatever the prompts.
    "mla": 0.85,
    # Wide expert parallelism reads few experts and no deep products: of DeepEP's layouts the time
    # of arithmetic and of rereading is never the longer one.
    "moe": 0.5,
}
"""Share of coefficients that come back within 2 % where it is not all of them, and why: without
noise, only what no row tells apart may be off."""


def coefficients(entry, known):
    """Fitted over known coefficients, by name, those of protocols too."""
    about = {"num_rows", "median_error", "p90_error", "bias", "covered"}
    for name in entry.keys() - about:
        if isinstance(entry[name], dict):
            yield from coefficients(entry[name], known.get(name) or {})
        elif isinstance(entry[name], float) and known.get(name):
            yield entry[name] / known[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_a_fit_gets_known_parameters_back(name):
    """Rows without noise: what is left out is predicted nearly to the digit, and coefficients come
    back wherever rows tell them apart.
    """
    family = family_of(name)
    told = [told_by_known_parameters(family, source) for source in family.sources]
    drawn = next(table for table in told if table is not None)
    fitted = family.fit([drawn.iloc[:0] if table is None else table for table in told])
    assert list(fitted) == ["hopper"], "what was not measured has no entry"
    shipped = getattr(load_calibration("hopper", "test"), family.calibrates)
    errors, ratios = [], []
    others = [entries for engine, entries in fitted["hopper"].items() if engine != "any"]
    for engine, entries in fitted["hopper"].items():
        for key, entry in entries.items():
            is_of_others = engine == "any" and any(key in own for own in others)
            if entry["kind"] == "assumed" or key not in shipped[engine] or is_of_others:
                continue  # what stands for any engine was told by one engine's coefficients
            errors.append(entry["median_error"])
            ratios += coefficients(entry, shipped[engine][key].model_dump())
    assert np.median(errors) <= 0.001
    share = np.mean(np.abs(np.array(ratios) - 1) <= 0.02)
    assert share >= COEFFICIENTS_BACK.get(name, 1.0)
