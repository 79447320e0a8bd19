"""``python -m tests.golden.faults``: put one fault after another into the engine, and show that the
golden set notices each.

Every fault is tried on a copy of the program, compiled anew, since numba does not see that a
function changed which another file calls. It takes about a minute a fault. The exit status is 1 if
one lives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_ENDS_S = 900.0
"""Seconds after which the golden tests have ended, also on a busy machine: they take a minute or
two, and a fault that makes a run endless is noticed by that."""
_SLOW = "mixtral or deepseek or gpt_oss"
"""Cases that take longest, which come last."""


class Fault(NamedTuple):
    """One wrong line."""

    story: str
    file: str
    right: str
    wrong: str


ADMISSION, BATCHING, CACHE, LOOP, POOL, TABLE = (
    f"simulator/engine/{name}.py"
    for name in ("admission", "batching", "cache", "loop", "pool", "table")
)
FAULTS = (
    Fault(
        "a request goes to the fullest rank",
        POOL,
        "waiting, load = unfinished - each[d].num_running, float(unfinished)",
        "waiting, load = unfinished - each[d].num_running, -float(unfinished)",
    ),
    Fault(
        "a prompt's last token counts as a decode",
        BATCHING,
        "return generated > 0 and computed",
        "return computed",
    ),
    Fault(
        "decodes run beside prompts whatever the policy says",
        BATCHING,
        "budget, limits, True, limits.rules.mixes_phases",
        "budget, limits, True, True",
    ),
    Fault(
        "prompts are held back one step too long",
        BATCHING,
        "counts.held >= limits.rules.balance_steps",
        "counts.held > limits.rules.balance_steps",
    ),
    Fault(
        "prompts that fill the step wait all the same",
        BATCHING,
        "or tokens >= limits.wait_tokens",
        "or tokens > limits.rules.token_budget",
    ),
    Fault(
        "what was preempted waits last in line",
        BATCHING,
        "        join_again(rank.waiting, requests.each, r)",
        "        join(rank.waiting, requests.each, r)",
    ),
    Fault(
        "only the first chunk must have room",
        ADMISSION,
        "if limits.rules.checks_known:",
        "if False:",
    ),
    Fault(
        "the outputs of those that run are not counted on",
        ADMISSION,
        "room = known + clipped + coming",
        "room = known + clipped",
    ),
    Fault(
        "what was lost is never found again",
        CACHE,
        "min(request.kept_blocks, request.kept_end",
        "min(0, request.kept_end",
    ),
    Fault(
        "no blocks are kept free at admission",
        ADMISSION,
        "        if rank.num_running > 0:",
        "        if False:",
    ),
    Fault(
        "room for the output is not reserved",
        ADMISSION,
        "            if limits.rules.reserves_output\n            else computed + new",
        "            if False\n            else request.num_input",
    ),
    Fault(
        "gaps of a millionth count ten times too long",
        BATCHING,
        "decades * GAP_BINS_PER_DECADE",
        "(decades + 1) * GAP_BINS_PER_DECADE",
    ),
    Fault(
        "the most recently used prefix goes first",
        CACHE,
        "prefixes[len(prefixes) - 1].newer  # the",
        "prefixes[len(prefixes) - 1].older  # the",
    ),
    Fault(
        "a prefix is found although its last token must be computed",
        CACHE,
        "most = min(request.num_input, request.num_input + request.generated - 1)",
        "most = request.num_input",
    ),
    Fault(
        "blocks that are not full stand in line with those that are",
        CACHE,
        "limits.rules.finds_full and not limits.rules.frees_partial_first",
        "limits.rules.finds_full",
    ),
    Fault(
        "who has all tokens with the step in flight gets another one",
        BATCHING,
        "if gets_last(requests, r) or not (decodes if decodes_next else prompts):",
        "if not (decodes if decodes_next else prompts):",
    ),
    Fault(
        "a summed decode that ends with the step in flight takes a place in the next",
        BATCHING,
        "return int(rank.num_decodes - ended)",
        "return int(rank.num_decodes)",
    ),
    Fault(
        "a tier evicts the most recently used",
        CACHE,
        "            _link(prefixes, block, before)",
        "            _link(prefixes, block, prefixes[len(prefixes) - 1].newer)",
    ),
    Fault(
        "reads of one link overlap",
        CACHE,
        "tier.read_until_s = max(tier.read_until_s, now_s) + count",
        "tier.read_until_s = now_s + count",
    ),
    Fault(
        "blocks can be read before they are written",
        CACHE,
        "    prefixes[block].since_s = tier.written_until_s",
        "    prefixes[block].since_s = now_s",
    ),
    Fault(
        "the fullest share is not interpolated",
        TABLE,
        "s2 = min(s + 1, sizes[z, 1] - 1)",
        "s2 = s",
    ),
    Fault(
        "the second half of an overlapped step computes nothing beside",
        TABLE,
        "beside / table.num_parts, table.expert_share[part]",
        "beside, table.expert_share[part]",
    ),
    Fault(
        "a pipeline's last stage has no output matrix",
        TABLE,
        "ends += in_layers * last + head_s[b]",
        "ends += in_layers * last",
    ),
    Fault(
        "the queue is looked at in every step",
        LOOP,
        "is_idle or counts.num_steps % limits.rules.poll_steps == 0",
        "True",
    ),
    Fault(
        "a closed loop's next request joins the step that is forming",
        LOOP,
        "RETURNS if feed.is_closed and feed.ingress_delay_s + feed.send_s == 0.0 else COMES",
        "COMES",
    ),
    Fault(
        "windows are as long as the context",
        TABLE,
        "new, windows[w, phase], compressions",
        "new, 1 << 40, compressions",
    ),
    Fault(
        "hot experts get no copies",
        "simulator/policies/placement/eplb.py",
        "hottest = int((load_X / copies_X).argmax())",
        "hottest = int((load_X / copies_X).argmin())",
    ),
    Fault(
        "the longest prompt is balanced as one request",
        "simulator/policies/balancing/least_tokens.py",
        "return Rule(per_token=1)",
        "return Rule(per_request=1)",
    ),
    Fault(
        "an exchange ends with the last of its links in order, not in time",
        "simulator/engine/fabric.py",
        "ends_F[place] = max(ends_F[place], passed_s)",
        "ends_F[place] = passed_s",
    ),
    Fault(
        "a rank that waits is not the last one",
        "simulator/engine/by_ranks.py",
        "meeting.missing == 0",
        "meeting.missing == 1 - (len(operation.groups[group]) == 1)",
    ),
    Fault(
        "transfers of one rank overlap",
        "simulator/engine/loop.py",
        "handing.free_s[replica, sender] = start_s + send_s",
        "handing.free_s[replica, sender] = start_s",
    ),
    Fault(
        "a draft is kept past a token that was not accepted",
        "simulator/engine/batching.py",
        "        < limits.accepted[kept - 1]",
        "        < limits.accepted[0] + kept",
    ),
    Fault(
        "drafts are found in no time",
        "simulator/engine/table.py",
        "range(min(2, table.num_passes))",
        "range(min(0, table.num_passes))",
    ),
    Fault(
        "caches are forgotten before they have left",
        BATCHING,
        "                if not limits.hands_over:",
        "                if True:",
    ),
    Fault(
        "a cache leaves whether there is room for it or not",
        "simulator/engine/admission.py",
        "        if asked > count_available(ranks, pool, limits):",
        "        if asked > count_available(ranks, pool, limits) + 1_000_000:",
    ),
    Fault(
        "prompts are computed before there is room",
        "simulator/cost/transfer.py",
        "reserves_first=hand_over.reserves_first or spec.layerwise",
        "reserves_first=spec.layerwise",
    ),
    Fault(
        "layers that left early are sent again",
        "simulator/cost/transfer.py",
        "busy_s - computing_s / stages)",
        "busy_s)",
    ),
    Fault(
        "every layer has the first one's experts",
        "simulator/step/prices.py",
        "(layer, offset) for layer in range(self.placement",
        "(0, offset) for layer in range(self.placement",
    ),
    Fault(
        "tiles need not be whole",
        "simulator/cost/kernels/gemm.py",
        "tiles = np.ceil(rows / tile_rows)",
        "tiles = (rows / tile_rows)",
    ),
    Fault(
        "a backward pass does not wait for the gradient of the next stage",
        "simulator/engine/training.py",
        "if depth < len(places) - 1:",
        "if depth < 0:",
    ),
    Fault(
        "gradients of experts are added up over all data-parallel ranks",
        "simulator/deployment/training/plan.py",
        "return self.stage_ranks // self.placement.layout.num_ranks",
        "return self.stage_ranks // self.placement.layout.tp",
    ),
)


def try_fault(fault: Fault | None, folder: Path) -> str:
    """The golden case that notices a fault; empty where none does. Without one, the program as it
    is.

    Raises:
        SystemExit: if the line is not there exactly once, or the tests could not run.
    """
    copy = folder / "copy"
    for name in ("simulator", "tests", "workloads", "cluster_configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    if fault is not None:
        file = copy / fault.file
        text = file.read_text()
        if text.count(fault.right) != 1:
            raise SystemExit(f"{fault.file} has {text.count(fault.right)} times: {fault.right}")
        file.write_text(text.replace(fault.right, fault.wrong))
    environment = {**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(folder / "numba")}
    tests = "tests/golden/test_golden.py::test_no_number_moved"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", tests]
    for chosen in (f"not plan and not ({_SLOW})", f"plan or {_SLOW}"):
        try:
            done = subprocess.run(
                [*command, "-k", chosen],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_ENDS_S,
            )
        except subprocess.TimeoutExpired:
            return f"a run that does not end (in {_ENDS_S:.0f} s)"
        found = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        if found:
            return found[0].partition("[")[2].partition("]")[0]
        if done.returncode:
            raise SystemExit(f"the golden tests did not run:\n{done.stdout}{done.stderr}")
    return ""


def main(chosen: list[str]) -> bool:
    """Try them, say of each what noticed it, and whether all were noticed."""
    wanted = [int(number) for number in chosen] or list(range(1, len(FAULTS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        if noticed := try_fault(None, Path(folder)):
            raise SystemExit(f"{noticed} fails already: make golden first")
    caught = []
    for number in wanted:
        fault = FAULTS[number - 1]
        with tempfile.TemporaryDirectory() as folder:
            caught.append(try_fault(fault, Path(folder)))
        by = f"caught by {caught[-1]}" if caught[-1] else "LIVES"
        print(f"{number:2} {fault.story}: {by}", flush=True)
    return all(caught)


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
