"""The preflight of a job: all ranks meet, each node checks itself, all reduce, rank 0 compares and judges."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcl_composer.config import check_batch_divides, compose
from lcl_composer.config.trial import this_device
from lcl_composer.errors import LCLError, one_line
from lcl_composer.preflight import disk, equal, links, node
from lcl_composer.preflight.finding import Finding, Line, fail, lines_of, ok, tried
from lcl_composer.preflight.meeting import Meeting
from lcl_composer.preflight.plan import Plan
from lcl_composer.preflight.shards import shards
from lcl_composer.preflight.world import World

#: What each node checks, in the order of the table; later ones use what `shards` has seen.
CHECKS: dict[str, Callable[[Plan], Finding]] = {
    "GPUs": node.gpus,
    "shards": shards,
    "memory": node.memory,
    "shared memory": node.shared_memory,
    "left by killed jobs": node.leftovers,
    "cache limit": disk.cache_limit,
    "disk": disk.disk,
    "write access": disk.write_access,
    "open files": node.open_files,
}
#: Seconds that a node's checks may take together; one may take them all, as a network file system can hang.
NODE_SECONDS = 240.0


class Preflight:
    """One rank's part in it.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` settings laid over it.
        world: This process among the others.
        wait: Seconds to wait for ranks that start later.

    Raises:
        LCLError: If the ranks cannot meet.
    """

    def __init__(self, path: Path, overrides: Sequence[str], world: World, wait: float):
        self.path, self.overrides, self.world, self.wait = path, overrides, world, wait
        self.gpu = this_device() == "gpu"
        self.meeting = Meeting(world, wait)

    def first_rank(self) -> list[Line]:
        """Do rank 0's part and return the table; :meth:`end` tells the others.

        Raises:
            Absent: If ranks did not come, or died on the way.
            ConfigError: If the YAML is wrong.
        """
        world, meeting = self.world, self.meeting
        meeting.put("here", world.host)
        hosts = meeting.gather("here", range(world.size), self.wait)
        plan = self._plan(token := secrets.token_hex(4))
        made = disk.begin_probes(plan)
        try:
            meeting.say("token", token)
            ahead = {rank // world.local_size: self._ask_clock(rank) for rank in world.leaders[1:]}
            meeting.put("node", self.check_node(plan))
            found = meeting.gather("node", world.leaders, NODE_SECONDS + 30)
        finally:
            disk.end_probes(plan, made)
        backends = _backends(found.values())
        meeting.say("reduce", backends)
        self._reduce(backends)
        reduced = links.links(meeting, backends, self._gradients(plan))
        lines = self._lines({rank // world.local_size: value for rank, value in found.items()}, ahead)
        where = ok(f"{world.size} on {', '.join(dict.fromkeys(hosts[rank] for rank in sorted(hosts)))}")
        return [Line("ranks", "all", where), *lines, *(Line(name, "all", f) for name, f in reduced.items())]

    def other_rank(self) -> int:
        """Do the part of another rank; returns the exit code that rank 0 says."""
        world, meeting = self.world, self.meeting
        meeting.put("here", world.host)
        token = meeting.hear("token", self.wait + NODE_SECONDS)
        if token is not None and world.local_rank == 0:
            self._answer_clock()
            meeting.put("node", self._own_node(token))
        self._reduce(meeting.hear("reduce", 2 * NODE_SECONDS + self.wait) or [])
        return meeting.hear("verdict", 4 * links.SECONDS)

    def end(self, code: int) -> None:
        """Tell the others how it ended, and wait a little for them to hear it."""
        for name in ("token", "reduce"):  # whoever still waits for these goes on to the verdict
            if not self.meeting.store.check([name]):
                self.meeting.say(name, None)
        self.meeting.say("verdict", code)
        time.sleep(1.0 if self.world.size > 1 else 0.0)
        self.meeting.close()

    def check_node(self, plan: Plan) -> dict[str, Any]:
        """What this node found, fit for JSON: findings by check, and its facts."""
        found: dict[str, Finding] = {}
        thread = threading.Thread(target=_check_all, args=(plan, found), daemon=True)
        thread.start()
        thread.join(NODE_SECONDS)
        hung = next((name for name in CHECKS if name not in found), None)
        if hung is not None:
            said = f"did not end within {NODE_SECONDS:g} s; does a file system or a remote hang?"
            found = {**found, hung: fail(said)}
        findings = {name: [f.status, f.message] for name, f in found.items()}
        return {"findings": findings, "facts": equal.facts(plan.composed)}

    def _plan(self, token: str) -> Plan:
        composed = compose(self.path, self.overrides, "gpu" if self.gpu else "cpu")
        check_batch_divides(composed.run, self.world.size)
        return Plan(composed, self.world, self.gpu, token)

    def _own_node(self, token: str) -> dict[str, Any]:
        try:
            return self.check_node(self._plan(token))
        except LCLError as error:
            return {"error": str(error)}
        except Exception as error:  # rank 0 tells it; a traceback here would be seen by nobody
            return {"error": f"{type(error).__name__}: {one_line(error)}"}

    def _reduce(self, backends: Sequence[str]) -> None:
        if self.world.size > 1 and backends:
            self.meeting.put("links", links.reduce(self.world, backends))

    def _gradients(self, plan: Plan) -> int:
        try:
            return plan.sizes.gradients
        except Exception:  # the checks have said why
            return 0

    def _lines(self, found: Mapping[int, dict[str, Any]], ahead: Mapping[int, float]) -> list[Line]:
        nodes = self.world.nodes
        whole = {n: value for n, value in found.items() if "facts" in value}
        lines = [
            Line("settings", str(n), fail(value["error"])) for n, value in found.items() if "error" in value
        ]
        lines += equal.compare({n: value["facts"] for n, value in whole.items()}, ahead, nodes)
        for name in CHECKS:
            of_check = {
                n: Finding(*value["findings"][name])
                for n, value in whole.items()
                if name in value["findings"]
            }
            lines += lines_of(name, of_check, nodes)
        return lines

    def _ask_clock(self, rank: int) -> float:
        """Seconds that the clock of a rank is ahead of ours, to a few milliseconds."""
        self.meeting.say(f"clock/{rank}/go", True)
        self.meeting.gather("clock", [rank], self.wait)
        self.meeting.say(f"clock/{rank}/time", time.time())
        return self.meeting.gather("ahead", [rank], self.wait)[rank]

    def _answer_clock(self) -> None:
        """As NTP does: our time half-way between the question and its answer is rank 0's."""
        rank = self.world.rank
        self.meeting.hear(f"clock/{rank}/go", self.wait)
        asked = time.time()
        self.meeting.put("clock", True)
        theirs = self.meeting.hear(f"clock/{rank}/time", self.wait, poll=0.001)
        self.meeting.put("ahead", (asked + time.time()) / 2 - theirs)


def _check_all(plan: Plan, found: dict[str, Finding]) -> None:
    for name, check in CHECKS.items():
        finding = tried(lambda check=check: check(plan))
        same = next((before for before, other in found.items() if other == finding), None)
        repeated = same is not None and finding.status == "fail"
        found[name] = fail(f"cannot be told before {same} is mended") if repeated else finding


def _backends(nodes: Iterable[dict[str, Any]]) -> list[str]:
    """NCCL too if every node has GPUs: one without would leave the others waiting."""
    return ["gloo", "nccl"] if all(node.get("facts", {}).get("gpus") for node in nodes) else ["gloo"]


def exit_code(lines: Sequence[Line]) -> int:
    """0 if nothing has to be mended, else 1."""
    return int(any(line.finding.status == "fail" for line in lines))
