"""Scenarios: names, files, overrides, and how errors name a place."""

import pytest
from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Duration, MemoryBytes, Size, Tokens
from simulator.base.reading import read_json, read_toml
from simulator.scenario.jobs import load_scenario

SHIPPED = "mixtral_vs_llama2"


def load(*overrides):
    return load_scenario(SHIPPED, list(overrides))


def refusal(*overrides):
    with pytest.raises(UserError) as refused:
        load(*overrides)
    return str(refused.value)


def test_overrides_reach_every_place():
    scenario = load(
        "workload.num_requests=12",
        "deployments.*.weight_dtype=bf16",
        "deployments.1.parallel = { tp = 4 }",
        "deployments.0.routing.kind=uniform",
        'name="a = b"',
    )
    assert scenario.workload.num_requests == 12
    assert [d.weight_dtype for d in scenario.deployments] == ["bf16", "bf16"]
    assert scenario.deployments[1].parallel.tp == 4
    assert scenario.deployments[0].routing == {"kind": "uniform"}
    assert scenario.name == "a = b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workload", "must be path=value"),
        ("workload.num_requests=", "no value"),
        ("workload.requests=[1", "not a TOML value"),
        ("deployments.two.model=x", "'two' must be a number from 0 to 1, or * for every entry"),
        ("deployments.0.weight_dtype.x=1", "'x' lies inside a value that is not a table"),
        ("workload.nums=1", "unknown key 'nums'"),
        ("deployments=[]", "a list of at least 1 entries"),
    ],
)
def test_a_wrong_override_is_named(override, said):
    message = refusal(override)
    assert override in message
    assert said in message


def test_a_folder_does_not_hide_a_shipped_scenario(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED).mkdir()
    assert load().seed == 7


def test_a_name_is_taken_from_the_file_where_it_gives_none(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('[workload]\nrequests="x"\n[[deployments]]\nname="a"\nmodel="m"\ncluster="c"\n')
    assert load_scenario(str(path), []).name == "short"


class Part(Frozen):
    size: Size = 1


class Whole(Frozen):
    parts: tuple[Part, ...] = Field(default=(), strict=False)
    either: str | int = ""
    small: float = Field(default=0.0, le=2)
    text: str = Field(default="a", min_length=1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"small": float("inf")}, "f: small must be a finite number, got inf"),
        ({"either": 1.5}, "f: either must be a text in quotes or a whole number, got 1.5"),
        ({"parts": {"size": 1}}, "f: parts must be a list of tables; write [[parts]]"),
        ({"parts": [{}, {"sise": 1}]}, "f [parts entry 2 of 2]: unknown key 'sise'"),
        ({"parts": [{"name": "p", "size": 0}]}, "f [parts 'p']: "),
    ],
)
def test_errors_name_place_key_value_and_remedy(table, message):
    with pytest.raises(UserError) as refused:
        validate(Whole, table, "f")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = 1\nb = \n", ", line 2, column 5: not valid TOML"),
        (b"# nothing\n", ": is empty"),
        (b"a = 1\nb = '\xff'", ", line 2: is not UTF-8 text"),
        (b"a\0", ": is not a text file"),
    ],
)
def test_a_wrong_toml_file(tmp_path, content, said):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        read_toml(tmp_path / "x.toml")
    assert f"x.toml{said}" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "found a list"),
        ("3", "found a single value"),
        ("null", "found null"),
        ('{\n"a": }', ", line 2, column 6"),
    ],
)
def test_a_wrong_json_file(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError) as refused:
        read_json(tmp_path / "x.json")
    assert said in str(refused.value)
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)


class Timed(Frozen):
    wait_s: Duration = 1.0
    shown: Tokens = 1
    memory_bytes: MemoryBytes = 1e9


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"wait_s": 2e9}, r"at most 31,622,400 seconds, got 2.*; is this in milliseconds"),
        ({"memory_bytes": 80}, "at least 1,000,000 bytes, got 80; is this in GB"),
    ],
)
def test_a_number_outside_its_range_is_told_the_range_the_unit_and_the_likely_slip(table, said):
    (key,) = table
    with pytest.raises(UserError, match=f"^f: {key} must be {said}"):
        validate(Timed, table, "f")


def test_a_list_that_lacks_only_wrong_entries_names_what_is_wrong_with_them():
    message = refusal("deployments.1.weight_dtyp=fp8", "deployments.0.weight_dtyp=fp8")
    assert "unknown key 'weight_dtyp'; did you mean 'weight_dtype'?" in message
    assert "at least 1 entries" not in message


class Keyed(Frozen):
    first: int
    second: int
    inner: Whole = Whole()


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(UserError) as refused:
        validate(Keyed, {}, "f")
    assert str(refused.value) == "f: missing keys 'first', 'second'"
