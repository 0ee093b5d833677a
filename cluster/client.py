"""A command's short-lived connection: to a cluster's orchestrator, or, where there is none, to this machine's guardian alone.

Which cluster: the address, else RAY_ADDRESS, else the newest embedded Ray of this STATE. Without any, `halt`, `resume`, `status`,
`doctor` and `recover` still work on this machine, through the guardian's socket and the files in STATE; `halt` and `resume` do so
first and in any case, whatever state the cluster is in.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from actors.clock import SECOND_NS, SystemClock
from actors.errors import HarnessError, InputError, RefusedError, StressError
from actors.guardian import GuardianClient
from actors.messages import NodeSpec
from actors.origin import code_id
from actors.state import open_state_dir

from .driver_main import orchestrator_config, shipped
from .embedded import environment, find_embedded
from .fetch import LocalDirectory, checked_run, fetch, homes_of, is_whole, stored_runs
from .files import read_json
from .halting import ClusterOrder
from .ray_facts import ray_facts
from .settings import Settings, state_path
from .stored import judge_status

RECOVER_S = 20.0
END_S = 90.0  # within which a run that was told to stop has ended
LOST_S = 10.0  # how long STATE is asked for the end of a run whose orchestrator has gone


class Connection:
    """See the module. A cluster is connected to by the first call that needs it; `halt` and `resume` never connect this process."""

    def __init__(self, settings: Settings, address: str, *, ship: bool = False, is_embedded: bool = False) -> None:
        self._settings, self.address, self._ship, self._is_embedded = settings, address, ship, is_embedded
        self._state_dir = open_state_dir(state_path(settings))
        self._is_connected = False

    @classmethod
    def open(cls, address: str | None, settings: Settings) -> Connection:
        """Find out which cluster is meant."""
        named = address or os.environ.get("RAY_ADDRESS")
        wanted = named or _embedded_address(state_path(settings))
        return cls(settings, wanted, ship=bool(address), is_embedded=not named)

    def _port(self) -> ModuleType:
        """Connect, and return what talks to Ray. Raises `RefusedError` when the cluster does not answer."""
        from . import ray_port  # noqa: PLC0415  # Ray reads its environment when it is imported

        if not self._is_connected:
            ray_port.connect(self.address, ship=shipped(self._settings) if self._ship else ())
            self._is_connected = True
        return ray_port

    @functools.cached_property
    def _orchestrator(self) -> Any:
        """The orchestrator, None without a cluster or where none is at work."""
        return self._port().find("orchestrator") if self.address else None

    def _some_orchestrator(self) -> Any:
        return self._port().orchestrator(orchestrator_config(self._settings))

    def status(self, run: str | None) -> dict[str, Any]:
        """Return runs with what they ask and achieve, the halt, the budget; of one run when it is named."""
        if self._orchestrator is None:
            return self._local_status(run)
        found = self._orchestrator.call("status", group="control")
        runs = [{"run": name, **one} for name, one in found["runs"].items()]
        ended = [{"run": name, "status": one["status"], "exit_code": one["exit_code"]} for name, one in found["finished"].items()]
        if run is not None:
            name = self._run_id(run, [one["run"] for one in [*ended, *runs]])
            runs, ended = [one for one in runs if one["run"] == name], [one for one in ended if one["run"] == name]
        live = {one["run"] for one in ended}
        return {**found, "runs": [*(one for one in runs if one["run"] not in live), *ended], "finished": ended, "address": self.address}

    def stop(self, run: str | None) -> dict[str, Any]:
        """Stop a run (default: every run) gracefully and wait until it has ended."""
        if self._orchestrator is None:
            raise RefusedError("lost", "no cluster with a run was found", "give --address, or use `halt` to end everything on this machine")
        live = list(self._orchestrator.call("status", group="control")["runs"])
        names = live if run is None else [self._run_id(run, live)]
        for name in names:
            if not self._orchestrator.call("stop", name, "cancelled", "asked by `stop`", group="control"):
                raise InputError("unknown_name", f"run {name} is not alive", "see `stress-cluster status`")
        return {"runs": [self._await_end(name) for name in names], "unclean": []}

    def modify(self, run: str, changes: Sequence[str]) -> dict[str, Any]:
        """Change what a live run records; returns on which nodes it is in force."""
        if self._orchestrator is None:
            raise RefusedError("lost", "no cluster with a run was found", "give --address")
        name = self._run_id(run, list(self._orchestrator.call("status", group="control")["runs"]))
        found: dict[str, Any] = self._orchestrator.call("modify", name, list(changes), group="control")
        return found

    def halt(self, note: Callable[[str], None]) -> dict[str, Any]:
        """Halt everything, here first and then on every node of the cluster; blocks new runs until `resume`."""
        return self._set_halt(note, on=True)

    def resume(self, note: Callable[[str], None]) -> dict[str, Any]:
        """Lift the halt, here first and then on every node of the cluster."""
        return self._set_halt(note, on=False)

    def forget(self, node: str) -> dict[str, Any]:
        """Give back what a node that will not come back still owes; raises `RefusedError` while it may hold load."""
        if not self.address:
            raise RefusedError("lost", "no cluster was found", "give --address")
        found: dict[str, Any] = self._some_orchestrator().call("forget", node, timeout_s=60.0, group="control")
        return found

    def exporters(self, run: str, pause: Sequence[str], resume: Sequence[str], sets: Sequence[str]) -> dict[str, Any]:
        """Return how the exporters of a run that goes on stand, after these changes. Raises `InputError`; then nothing has changed."""
        if self._orchestrator is None:
            raise RefusedError("lost", "no cluster with a run was found", "give --address")
        name = self._run_id(run, list(self._orchestrator.call("status", group="control")["runs"]))
        aggregator = self._port().aggregator(name)
        if aggregator is None:
            raise HarnessError("lost", f"run {name} has no aggregator at the moment", "try again in a few seconds")
        told = aggregator.call("exporters", list(pause), list(resume), list(sets), timeout_s=30.0)
        return {"run": name, "status": "running", "exporters": told}

    def recover(self) -> dict[str, Any]:
        """Undo and deliver what a crash left, on every node of the cluster or on this machine."""
        remaining: list[str] = []
        delivered: list[str] = []
        alive: list[str] = []
        if self.address:
            found = self._some_orchestrator().call("recover", RECOVER_S, timeout_s=RECOVER_S + 90.0, group="control")
            remaining, delivered, alive = found["remaining"], found["recovered"], found["alive"]
        left = self._await_undone()
        delivered += [run for run in self._deliver_here(alive) if run not in delivered]
        fetched, missing = self._bring_home(alive)
        return {"delivered": delivered, "fetched": fetched, "undone": [], "remaining": [*remaining, *left, *missing]}

    def fetch(self, run: str, run_dir: Path) -> bool:
        """Bring to `run_dir` what this machine's STATE, or else the cluster, has of a run; false when neither knows it."""
        source = self._source(run)
        if source is None:
            return False
        fetch(source, run_dir, SystemClock().wall_ns())
        return True

    def doctor(self) -> dict[str, Any]:
        """Return what each node can do; of this machine alone without a cluster."""
        from actors.capability import judge, read_facts  # noqa: PLC0415

        if self.address:
            nodes = self._some_orchestrator().call("doctor", timeout_s=120.0, group="control")
            return {"code_id": code_id(), "nodes": nodes}
        facts = read_facts(self._state_dir)
        can = {name: found.to_json() for name, found in judge(facts).items()}
        return {"code_id": code_id(), "nodes": {"this machine": {**facts.to_json(), "ray": ray_facts(os.environ), "simulators": can}}}

    def nodes(self) -> Sequence[NodeSpec]:
        """Return the alive nodes of the cluster."""
        if not self.address:
            raise RefusedError("lost", "no cluster was found", "give --address, or --nodes for an embedded Ray")
        return [node.spec for node in self._port().nodes()]

    def close(self) -> None:
        """Leave the cluster."""
        if self._is_connected:
            self._port().disconnect()

    # ---- inside

    def _run_id(self, run: str, known: Sequence[str]) -> str:
        if run == "latest" and known:
            return max(known)
        name = Path(run).name
        if name in known:
            return name
        raise InputError("unknown_name", f"no run {run!r} is known here", f"known: {', '.join(known) or 'none'}")

    def _await_end(self, name: str) -> dict[str, Any]:
        """Wait for a run's end: its orchestrator tells it, or STATE does, where a driver of this machine has ended that Ray meanwhile."""
        clock = SystemClock()
        begun_ns, lost_ns = clock.boot_ns(), 0
        while True:
            try:
                outcome = self._orchestrator.call("follow", name, 0, group="control")["outcome"]
            except HarnessError as error:
                outcome = _stored_status(name, self._state_dir / "runs" / name)
                lost_ns = lost_ns or clock.boot_ns()
                if outcome["exit_code"] is None and clock.boot_ns() - lost_ns > LOST_S * SECOND_NS:
                    raise HarnessError(
                        error.code, f"run {name} was told to stop, but not how it ended: {error.message}", error.hint
                    ) from error
            if outcome is not None and outcome["exit_code"] is not None:
                return {"run": name, "status": outcome["status"], "exit_code": outcome["exit_code"]}
            if clock.boot_ns() - begun_ns > END_S * SECOND_NS:
                raise HarnessError("timeout", f"run {name} has not ended after {END_S:g} s", "see `stress-cluster status`")
            clock.sleep(0.1)

    def _set_halt(self, note: Callable[[str], None], *, on: bool) -> dict[str, Any]:
        """Have this machine's guardian do it, under a generation of its own, and the cluster meanwhile, under a higher one."""
        word, done = ("halt", "halted") if on else ("resume", "the halt is lifted")
        found: dict[str, Any] = {"on": on, "generation": 0, "nodes": [], "unreached": [], "killed": []}
        above, order = 0, None
        try:
            with self._guardian() as guardian, ThreadPoolExecutor(1) as beside:
                above = guardian.hello["halt"]["generation"] + 1
                pending = beside.submit(guardian.call, word)
                order = self._order(on, above)
                found |= _told_here(pending.result())
            if order is not None:
                note(f"this machine: {done} (generation {found['generation']}); now the cluster at {self.address}")
        except StressError as error:
            if not self.address:
                raise
            found["unreached"] = [f"this machine: {error}"]
        order = order or self._order(on, above)
        cluster = order.answer() if order is not None else {}
        if self._is_embedded and not cluster.get("nodes") and not self._still_embedded():
            cluster = {}  # its run ended by the local halt and took this Ray along: there is nothing left to reach
        return {**found, **cluster, "unreached": [*found["unreached"], *cluster.get("unreached", [])]}

    def _still_embedded(self) -> bool:
        return any(entry["address"] == self.address for entry in find_embedded(self._state_dir))

    def _order(self, on: bool, above: int) -> ClusterOrder | None:
        return ClusterOrder(self.address, self._settings, on=on, above=above, ship=self._ship) if self.address else None

    def _guardian(self) -> GuardianClient:
        return GuardianClient.connect(self._state_dir, role="cli", code_id=code_id())

    def _local_status(self, run: str | None) -> dict[str, Any]:
        """Return what this machine holds: runs with load here; of one run when it is named, also when STATE only has its results."""
        with self._guardian() as guardian:
            found = guardian.call("status")
        here = {slot["run"] for slot in found["slots"]}
        stored: dict[str, Path] = {}
        if run is not None:
            stored = dict(stored_runs(self._state_dir))
        names = sorted(here) if run is None else [self._run_id(run, sorted({*here, *stored}))]
        runs = [{"run": name, "phase": "on this machine"} if name in here else _stored_status(name, stored[name]) for name in names]
        return {"runs": runs, "halt": found["halt"], "guardian": found}

    def _source(self, run: str) -> Any:
        """Return who has a run's files: STATE of this machine, its aggregator, or one that the orchestrator opens again; or None."""
        stored = self._state_dir / "runs" / checked_run(run)
        if (stored / "manifest.json").is_file():
            return LocalDirectory(stored)
        if not self.address:
            return None
        from . import ray_port  # noqa: PLC0415

        if ray_port.aggregator(run) is None:
            self._orchestrator = ray_port.orchestrator(orchestrator_config(self._settings))
            self._orchestrator.call("reopen", run, timeout_s=60.0, group="control")
        return ray_port.aggregator(run)

    def _bring_home(self, alive: Sequence[str]) -> tuple[list[str], list[str]]:
        """Bring each run directory that a driver of this machine left unwhole up to date; return those runs, and what could not be had."""
        fetched: list[str] = []
        missing: list[str] = []
        for run, home in sorted(homes_of(self._state_dir, Path(self._settings.out)).items()):
            if run in alive or is_whole(home):
                continue
            try:
                fetched += [run] if self.fetch(run, home) else []
            except (OSError, StressError) as error:
                missing.append(f"run {run}: {home} could not be brought up to date: {error}")
        return fetched, missing

    def _await_undone(self) -> list[str]:
        """Wait until this machine's guardian, which replays its journal when it starts, holds nothing of a dead owner."""
        clock = SystemClock()
        deadline_ns = clock.boot_ns() + round((self._settings.lease_s + 5.0) * 1e9)
        with self._guardian() as guardian:
            while True:
                status = guardian.call("status")
                live = {slot["operation"] for slot in status["slots"]}
                left = [
                    f"{one['kind']} of {one['operation']}: {one['state']} {one['detail']}"
                    for one in status["records"]
                    if one["operation"] not in live
                ]
                if not left or clock.boot_ns() > deadline_ns:
                    return left
                clock.sleep(0.1)

    def _deliver_here(self, alive: Sequence[str]) -> Iterator[str]:
        """Bring what this machine's outboxes and logs hold into run directories that lie here and have no living aggregator."""
        from .recovery import deliver_local  # noqa: PLC0415  # needs pyarrow

        return deliver_local(self._state_dir, alive)


def _stored_status(run: str, directory: Path) -> dict[str, Any]:
    status, code, why = judge_status(read_json(directory / "manifest.json") or {}, {}, SystemClock().wall_ns())
    return {"run": run, "status": status, "exit_code": code, "message": why}


def _told_here(here: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a guardian's answer to halt or resume says: its generation, what it killed and how long that took."""
    told: dict[str, Any] = {"generation": here["halt"]["generation"], "killed": here.get("killed", [])}
    if told["killed"] and here.get("last_gone_ns"):
        told["halt_latency_ms"] = (here["last_gone_ns"] - here["decided_ns"]) / 1e6
    return told


def _embedded_address(state_dir: Path) -> str:
    """Return the address of the newest embedded Ray and take its environment on, so that Ray may be imported."""
    with contextlib.suppress(OSError):
        for entry in find_embedded(state_dir):
            os.environ.update(environment(Path(entry["folder"])))
            return str(entry["address"])
    return ""
