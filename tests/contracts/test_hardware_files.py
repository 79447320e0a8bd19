"""What every accelerator and cluster file promises. Files are discovered, so a new one is tested
without an edit here.
"""

import csv
import math

import pytest

from simulator.base.data import available_files
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.cluster import ClusterSpec, available_clusters, load_cluster
from tests.shared import SHARED, each_shared

ACCELERATORS = available_files("cluster_configs/accelerators")
CLUSTERS = available_files("cluster_configs")
NAMES_OF_SIZES = {"num_gpus", "sizes"}
"""What a file chooses to offer, rather than facts that have a source."""


def numeric_keys(table, prefix=""):
    """Dotted paths of every number in a table, its sources and the sizes it is offered in left
    out.
    """
    found = set()
    for key, value in table.items():
        if prefix + key in NAMES_OF_SIZES | {"sources"}:
            continue
        if isinstance(value, dict):
            found |= numeric_keys(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.add(prefix + key)
    return found


@pytest.fixture(params=sorted(ACCELERATORS))
def accelerator(request):
    return load_accelerator(request.param, "a test")


@pytest.mark.parametrize(
    "path",
    [*ACCELERATORS.values(), *CLUSTERS.values()],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_number_has_a_source_of_its_own_and_every_source_a_number(path):
    table = read_toml(path)
    assert set(table.get("sources", {})) == numeric_keys(table)
    assert all(len(text) > 10 for text in table.get("sources", {}).values())


@pytest.mark.parametrize("name", available_clusters())
def test_a_cluster_with_what_it_inherits_has_a_source_for_every_number(name):
    cluster, _ = load_cluster(name, "a test")
    assert numeric_keys(cluster.model_dump(exclude_none=True)) <= set(cluster.sources)


def test_peaks_are_dense(accelerator):
    """A figure with sparsity is twice too high: it breaks the ratios between formats, or FLOP per
    byte beyond any real chip.
    """
    assert 20 <= accelerator.bf16_flops_per_s / accelerator.memory_bytes_per_s <= 450
    if accelerator.fp8_flops_per_s:
        assert 1.9 <= accelerator.fp8_flops_per_s / accelerator.bf16_flops_per_s <= 2.1
    if accelerator.fp4_flops_per_s:
        assert 1.9 <= accelerator.fp4_flops_per_s / accelerator.fp8_flops_per_s <= 3.2


def test_magnitudes_are_in_base_units(accelerator):
    assert 1e12 <= accelerator.bf16_flops_per_s <= 1e16  # a processor's cores to a rack's GPU
    assert 16e9 <= accelerator.memory_bytes <= 1e12
    assert 2e10 <= accelerator.memory_bytes_per_s <= 2e13
    assert 5 <= accelerator.board_power_w <= 2000
    # The system of a phone or a laptop keeps a part of the memory that it shares with the GPU.
    least = 0.6 if accelerator.board_power_w <= 30 else 0.85
    assert least <= accelerator.servable_memory_bytes / accelerator.memory_bytes <= 1.08


def test_a_multiprocessor_computes_at_a_possible_rate(accelerator):
    """bf16 FLOP per multiprocessor and clock is a few hundred (no tensor cores) to 8,192
    (Blackwell) at 1 to 3 GHz.
    """
    assert (
        256 * 1e9 <= accelerator.bf16_flops_per_s / accelerator.num_multiprocessors <= 8192 * 2.5e9
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8", "int8", "mxfp4", "nvfp4", "int4"])
def test_a_narrower_format_is_never_slower_except_int8_where_the_vendor_cut_it(accelerator, dtype):
    if dtype == "int8" and "INT8" in accelerator.notes:
        assert accelerator.flops_per_s(dtype) == accelerator.int8_flops_per_s
    else:
        assert (
            accelerator.flops_per_s(dtype)
            >= accelerator.flops_per_s("bf16")
            > accelerator.flops_per_s("fp32")
        )


@pytest.mark.parametrize("name", available_clusters())
def test_every_size_of_every_cluster_loads(name):
    cluster, accelerator = load_cluster(name, "a test")
    assert isinstance(cluster, ClusterSpec)
    assert isinstance(accelerator, AcceleratorSpec)
    assert cluster.name == name
    assert cluster.accelerator == accelerator.name
    assert cluster.num_nodes == math.ceil(cluster.num_gpus / cluster.gpus_per_node)
    assert isinstance(cluster.topology["kind"], str)


@pytest.mark.parametrize("name", available_clusters())
def test_wires_have_possible_rates(name):
    cluster, accelerator = load_cluster(name, "a test")
    assert cluster.scale_up.latency_s < 1e-5
    if cluster.gpus_per_node > 1:
        assert 1e10 <= cluster.scale_up.bytes_per_s < accelerator.memory_bytes_per_s
    if cluster.scale_out:
        assert cluster.scale_out.bytes_per_s < cluster.scale_up.bytes_per_s
        assert cluster.scale_up.latency_s < cluster.scale_out.latency_s < 1e-5


@pytest.mark.parametrize("stem", sorted(CLUSTERS))
def test_sizes_rise_and_are_named_once(stem):
    sizes = read_toml(CLUSTERS[stem]).get("sizes", [])
    assert sizes == sorted(set(sizes))


def test_every_accelerator_is_in_some_cluster():
    used = {load_cluster(name, "a test")[0].accelerator for name in available_clusters()}
    assert used == set(ACCELERATORS)


# Agreement with a published table of the same hardware.

PUBLISHED = SHARED / "measurements" / "published" / "hardware_specs.csv"

OTHER_STEM = {"rtx_pro_6000_server": "rtx-pro-6000"}
ACCELERATOR_COLUMNS = {
    "mem_bw": "memory_bytes_per_s",
    "mem_capacity": "servable_memory_bytes",
    "bfloat16_tc_flops": "bf16_flops_per_s",
    "int8_tc_flops": "int8_flops_per_s",
    "fp8_tc_flops": "fp8_flops_per_s",
    "fp4_tc_flops": "fp4_flops_per_s",
    "power": "board_power_w",
}
DIFFERS = {
    # The table has 800 Gb/s a GPU; a DGX B200 has ConnectX-7 at 400 Gb/s.
    ("b200_sxm", "inter_node_bw"),
    # It counts a compute tray and repeats the NVLink rate between trays; our fast domain is the
    # rack, and between racks the NIC.
    *((name, key) for name in ("gb200", "gb300") for key in ("inter_node_bw", "num_gpus_per_node")),
}


def published_rows():
    if not PUBLISHED.exists():
        return {}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    stems = {system: OTHER_STEM.get(system, system.replace("_", "-")) for system in rows}
    return {
        system: (row, stems[system])
        for system, row in rows.items()
        if stems[system] in ACCELERATORS
    }


def published_against_ours(row, stem):
    """(column, published, ours) wherever both give a number."""
    accelerator = load_accelerator(stem, "a test")
    for column, field in ACCELERATOR_COLUMNS.items():
        if row[column] and getattr(accelerator, field):
            yield column, float(row[column]), getattr(accelerator, field)
    cluster, _ = load_cluster(f"{stem}-8", "a test")
    yield "num_gpus_per_node", float(row["num_gpus_per_node"]), cluster.gpus_per_node
    yield "intra_node_bw", float(row["intra_node_bw"]), cluster.scale_up.bytes_per_s
    if cluster.scale_out:
        yield "inter_node_bw", float(row["inter_node_bw"]), cluster.scale_out.bytes_per_s


@pytest.mark.measured
@pytest.mark.parametrize("system", each_shared(sorted(published_rows())))
def test_agrees_with_the_published_table_within_a_hundredth(system):
    for column, published, ours in published_against_ours(*published_rows()[system]):
        if (system, column) not in DIFFERS:
            assert ours == pytest.approx(published, rel=0.01), column


@pytest.mark.measured
def test_what_is_said_to_differ_from_the_published_table_does():
    rows = published_rows()
    differing = {
        (system, column)
        for system in rows
        for column, published, ours in published_against_ours(*rows[system])
        if ours != pytest.approx(published, rel=0.01)
    }
    assert differing == DIFFERS
