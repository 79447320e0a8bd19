"""Finding a cluster by name, and what a stranger reads when there is none."""

import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.commands.check import check
from simulator.config.accelerator import _SHIPPED, list_odd, load_accelerator
from simulator.config.cluster import available_clusters, list_odd_links, load_cluster
from simulator.deployment.notes import notes_of
from tests.parts import freeze

ACCELERATORS = "cluster_configs/accelerators"
BOX = """
title = "a box"
accelerator = "h100-sxm"
gpus_per_node = 8
topology = { kind = "switch" }
scale_up = { bytes_per_s = 450e9, latency_s = 1e-6 }
sources = { gpus_per_node = "the box" }
"""
WIRE = "scale_out = { bytes_per_s = 50e9, latency_s = 3e-6 }\n"


def message(name):
    with pytest.raises(UserError) as caught:
        load_cluster(name, "chat.toml [deployments.0]")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a cluster file of the user's own into the current directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cluster_configs"
    folder.mkdir()

    def write(stem, text):
        path = folder / f"{stem}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_without_sizes_is_called_by_its_bare_name_even_where_that_ends_in_digits():
    cluster, _ = load_cluster("gb200-nvl72", "a test")
    assert (cluster.num_gpus, cluster.gpus_per_node, cluster.num_nodes) == (72, 72, 1)
    assert "gb200-nvl72" in available_clusters()


def test_what_a_file_does_not_give_comes_from_the_one_it_is_based_on():
    base, _ = load_cluster("h100-sxm-64", "a test")
    cluster, accelerator = load_cluster("h100-sxm-leafspine", "a test")
    assert (cluster.num_gpus, cluster.topology["kind"]) == (64, "leaf_spine")
    assert cluster.scale_out == base.scale_out
    assert cluster.sources.items() >= base.sources.items()
    assert accelerator.name == "h100-sxm"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("l40s-3", "cluster 'l40s' comes in 1, 2, 4, 8 GPUs, not 3"),
        ("l40s", "comes in 1, 2, 4, 8 GPUs: say how many, as in 'l40s-8'"),
        ("laptop-m4-max-2", "in one size only (num_gpus = 1), not 2; write 'laptop-m4-max'"),
        ("h100-smx-32", "did you mean 'h100-sxm-32'?"),
        ("h100-sxm-08", "did you mean 'h100-sxm-8'?"),
    ],
)
def test_a_name_or_a_size_that_is_not_there_is_answered_with_the_nearest(name, said):
    assert message(name).startswith("chat.toml [deployments.0]: ")
    assert message(name).endswith(said)


@pytest.mark.parametrize(
    ("name", "named", "others"),
    [
        ("H100", ["h100-sxm-<GPUs>", "h100-pcie-<GPUs>"], "l40s"),
        ("tpu-v5e-16", ["h100-sxm-<GPUs>", "gb200-nvl72,"], "h100-sxm-8"),
    ],
)
def test_a_name_like_none_is_answered_with_files_and_not_with_every_size(name, named, others):
    assert all(one in message(name) for one in named)
    assert others not in message(name)


def test_a_users_own_file_is_found_and_is_one_node_unless_it_says_otherwise(own):
    own("mybox", BOX)
    cluster, accelerator = load_cluster("mybox", "a test")
    assert cluster.num_gpus == 8
    assert accelerator.name == "h100-sxm"
    assert "mybox" in available_clusters()


def test_a_users_own_file_may_be_based_on_one_that_ships(own):
    own(
        "cheap",
        'based_on = "h100-sxm"\ntitle = "cheap"\nprice_per_gpu_hour = 1.5\nsources = { '
        'price_per_gpu_hour = "offer" }\n',
    )
    cluster, _ = load_cluster("cheap-16", "a test")
    assert cluster.price_per_gpu_hour == 1.5
    assert cluster.sources["price_per_gpu_hour"] == "offer"
    assert cluster.num_nodes == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOX + "gpus_pernode = 4\n", "unknown key 'gpus_pernode'; did you mean 'gpus_per_node'?"),
        ('based_on = "h100-smx"\n', "unknown cluster file 'h100-smx'; did you mean 'h100-sxm'?"),
        ('based_on = "mybox"\n', "based_on goes round in a circle: mybox -> mybox"),
        (BOX + 'sizes = [8, "x"]\n', 'sizes.1 must be a whole number, got "x"'),
        (BOX + "sizes = [8, 12]\n" + WIRE, "sizes (12) must be whole nodes of 8"),
        (BOX + "num_gpus = 12\n" + WIRE, "num_gpus (12) must be whole nodes of 8"),
        (BOX + "num_gpus = 16\n", "num_gpus (16) needs several nodes, so scale_out"),
    ],
)
def test_a_wrong_file_is_named_with_what_would_be_right(own, text, said):
    path = own("mybox", text)
    for name in ("mybox", "mybox-8"):
        assert message(name).startswith(str(path))
        assert said in message(name)


def test_memory_to_serve_from_is_what_the_driver_shows_where_that_is_known():
    h100 = load_accelerator("h100-sxm", "a test")
    assert h100.servable_memory_bytes == 81559 * 2**20
    assert h100.model_copy(update={"visible_memory_bytes": None}).servable_memory_bytes == 80e9


def test_no_shipped_machine_is_odd_and_the_bounds_are_theirs():
    specs = [load_accelerator(name, "test") for name in available_files(ACCELERATORS)]
    clusters = [load_cluster(name, "test")[0] for name in available_clusters()]
    wires = [one for cluster in clusters for one in (cluster.scale_up, cluster.scale_out) if one]
    for key, (low, high, _) in _SHIPPED.items():
        found = [one for spec in (*specs, *wires) if (one := getattr(spec, key, None)) is not None]
        assert (min(found), max(found)) == pytest.approx((low, high), rel=0.01)
    assert not [note for one in specs for note in list_odd(one, one.name)]
    assert not [note for one in clusters for note in list_odd_links(one)]


def test_a_number_far_from_every_machine_is_told(own):
    hundredfold = load_accelerator("h100-sxm", "test").with_speed(1.0, 100.0)
    note, *_ = list_odd(hundredfold, "mine")
    assert str(note).startswith("mine: bf16_flops_per_s is 9.89e+16 FLOP/s")
    [note] = check(own("slow", BOX.replace("1e-6", "1.0"))).notes
    assert note.startswith("slow scale_up: latency_s is 1 s")
    own("slow-wires", BOX.replace("1e-6", "1.0"))
    table = {"name": "x", "model": "llama-3.1-8b", "cluster": "slow-wires"}
    plan = freeze(table, 1)
    assert any(one.facts.get("key") == "latency_s" for one in notes_of(plan))
