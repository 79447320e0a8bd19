"""Files that start a deployment: scripts that start exactly its commands, and a manifest with the
same flags, GPUs and replicas.
"""

import os
import subprocess

import pytest
import yaml

from simulator.planner.handover import list_files
from simulator.planner.launch import list_commands, prepare_launch
from simulator.planner.serving.engines import ENGINES
from tests.unit.test_serving_commands import plan

POOLS = {"prefill": {"parallel": {"tp": 2}, "replicas": 2}}
DEPLOYMENTS = {
    "equal": {"split": (2, 1, 1), "gpus": 8, "replicas": 4},
    "one": {"split": (1, 4, 4), "gpus": 8, "replicas": 1, "placement": {"kind": "eplb", "num_slots": 36}},
    "nodes": {"split": (2, 1, 1), "gpus": 16, "replicas": 8},
    "pools": {"split": (1, 4, 4), "gpus": 8, "replicas": 1, **POOLS},
    "spanning": {"split": (1, 32, 32), "gpus": 64, "replicas": 2, "model": "deepseek-v3"},
}  # fmt: skip


def prepared(engine, case):
    made = plan(engine, **DEPLOYMENTS[case], memory_fraction=0.9)
    arguments = (made, made.spec.model, 3000, 4000)
    launch = prepare_launch(*arguments)
    files = list_files(launch, "a deployment", list_commands(*arguments))
    return launch, {one.file: one.text for one in files}


@pytest.fixture
def started(tmp_path):
    """Run a script with programs that write what they are given, and return that."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    seen = 'printf "%s\\n" "$0|$CUDA_VISIBLE_DEVICES|$VLLM_NIXL_SIDE_CHANNEL_HOST|$VLLM_NIXL_SIDE_CHANNEL_PORT|$*"'
    for name in ("vllm", "python", "trtllm-serve", "srun", "vllm-router"):
        program = programs / name
        program.write_text(f'#!/bin/sh\n{seen} >> "{log}"\n')
        program.chmod(0o755)

    def run(text, *arguments):
        log.write_text("")
        path = f"{programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "POD_IP": "10.0.0.1", "LWS_LEADER_ADDRESS": "node0"}
        environment |= dict(one for one in arguments if isinstance(one, tuple))
        words = [one for one in arguments if isinstance(one, str)]
        subprocess.run(["bash", "-c", text, "x", *words], check=True, env=environment, cwd=tmp_path)
        return sorted(log.read_text().splitlines())

    return run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", DEPLOYMENTS)
def test_scripts_start_all_commands_and_nothing_else(engine, case, started):
    launch, files = prepared(engine, case)
    names = {"both": "server", "prompts": "prompt-server", "decoding": "decode-server"}
    for role, server in launch.servers.items():
        script = files[f"serve/{names[role]}.sh"]
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        given = {}
        for place in launch.places[role]:
            for node in range(launch.engine.count_starts(place)):
                command = launch.engine.start_server(server, place, node)
                given.setdefault(place.hosts[node], []).extend(started(command))
        for host, lines in given.items():
            assert started(script, host) == sorted(lines)
    if launch.router:
        assert started(files["serve/router.sh"]) == started(launch.router)


def read_manifest(files):
    return list(yaml.safe_load_all(files["serve/kubernetes.yaml"]))


@pytest.mark.parametrize("engine", ENGINES)
def test_replicas_of_a_node_are_a_deployment(engine, started):
    launch, files = prepared(engine, "equal")
    server, service = read_manifest(files)
    assert (server["apiVersion"], server["kind"]) == ("apps/v1", "Deployment")
    assert server["spec"]["replicas"] == 4
    template = server["spec"]["template"]
    assert template["metadata"]["labels"] == server["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == server["spec"]["selector"]["matchLabels"]
    (container,) = template["spec"]["containers"]
    assert container["resources"]["requests"] == {"nvidia.com/gpu": 2}
    assert container["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"]
    place = launch.places["both"][0]
    (line,) = started(launch.engine.start_server(launch.servers["both"], place, 0))
    assert started(*container["args"]) == [line.replace("|0,1|", "||")]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_replica_over_nodes_is_a_group_whose_workers_count_themselves(engine, started):
    launch, files = prepared(engine, "spanning")
    group, service = read_manifest(files)
    assert group["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert group["spec"]["replicas"] == 2
    templates = group["spec"]["leaderWorkerTemplate"]
    assert templates["size"] == 4
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    server, place = launch.servers["both"], launch.places["both"][0]
    for node in range(4):
        template = templates["workerTemplate" if node else "leaderTemplate"]
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
        given = started(*container["args"], ("LWS_WORKER_INDEX", str(node)))
        assert given == started(launch.engine.start_server(server, place, node))


def test_a_pod_of_a_pool_is_reached_at_its_own_address(started):
    _, files = prepared("vllm", "pools")
    for one in read_manifest(files):
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert "|10.0.0.1|" in started(*container["args"])[0]


def test_what_a_launcher_starts_has_no_manifest_and_says_so():
    _, files = prepared("trtllm", "spanning")
    assert "serve/kubernetes.yaml" not in files
    assert "no manifest" in " ".join(files["serve/server.sh"].replace("\n#", " ").split())
