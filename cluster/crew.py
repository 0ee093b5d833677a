"""The cluster's agents, one a node, as the orchestrator has them: started where they are missing, asked all at once, poked without waiting.

Decides nothing: what a node may do is told to its agent when it asks (see `orchestrator.Orchestrator.exchange`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors.errors import RefusedError, StressError
from actors.origin import check_same_code

from .agent_api import AgentConfig
from .orchestrator_api import OrchestratorPort, RemoteAgent

HELLO_S = 60.0
PATIENCE_S = 5.0  # with an agent that has answered before: it hangs, or is stopped, and another takes its place


class Crew:
    """All methods may be called from any thread. `hellos` is what each node said last."""

    def __init__(self, port: OrchestratorPort, config_of: Callable[[str], AgentConfig]) -> None:
        self._port, self._config_of = port, config_of
        self._hiring = threading.Lock()
        self._agents: dict[str, RemoteAgent] = {}
        self._answered: dict[str, RemoteAgent] = {}
        self._workers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="hello")
        self.hellos: dict[str, dict[str, Any]] = {}

    def hello_all(self, names: Sequence[str], *, tolerant: bool = False) -> dict[str, dict[str, Any]]:
        """Have an agent on each of these nodes and hear what they say; all at once.

        Raises `RefusedError` for a node that cannot take part; with `tolerant` its answer is `{"error": reason}`.
        """
        with self._hiring:  # two agents of one node would fence each other
            for name in names:
                if name not in self._agents or not self._port.agent_alive(name):
                    self._agents[name] = self._port.agent(self._config_of(name))
        answers = dict(zip(names, self._workers.map(lambda name: self._hello_one(name, tolerant=tolerant), names), strict=True))
        self.hellos.update({name: hello for name, hello in answers.items() if "error" not in hello})
        return answers

    def _hello_one(self, name: str, *, tolerant: bool) -> dict[str, Any]:
        try:
            hello = self._heard(name)
            check_same_code(hello["code_id"], f"node {name}")
        except StressError as error:
            self._agents.pop(name, None)
            if not tolerant:
                raise RefusedError(error.code, f"node {name} cannot take part: {error.message}", error.hint) from error
            return {"error": str(error)}
        return hello

    def _heard(self, name: str) -> dict[str, Any]:
        """Return what a node's agent says, of a new one in its place when it has answered before and does so no more."""
        agent = self._agents[name]
        if self._answered.get(name) is agent:
            try:
                return agent.hello(PATIENCE_S)
            except StressError as error:
                if error.code != "timeout":
                    raise
            with self._hiring:
                if self._agents.get(name) is agent:
                    self._agents[name] = self._port.agent(self._config_of(name))
                agent = self._agents[name]
        hello = agent.hello(HELLO_S)
        self._answered[name] = agent
        return hello

    def hire_everywhere(self) -> tuple[set[str], set[str]]:
        """Return the alive nodes whose agent is there, and those where one is being started now, which is not waited for."""
        names = {node.name for node in self._port.nodes()}
        known = {name for name in names & self._agents.keys() if self._port.agent_alive(name)}
        hired = names - known
        if hired:
            threading.Thread(target=self._hire, args=(sorted(hired),), name="hire", daemon=True).start()
        return known, hired

    def _hire(self, names: Sequence[str]) -> None:
        with contextlib.suppress(StressError):  # a node that went meanwhile; whoever waits for it says so
            self.hello_all(names, tolerant=True)

    def poke(self, names: Iterable[str]) -> None:
        """Have nodes ask now. Never waits: what ends load goes before the disk and before whatever the workers are busy with."""
        for name in names:
            agent = self._agents.get(name)
            if agent is not None:
                with contextlib.suppress(StressError):  # it is dead: it asks no more, and is replaced
                    agent.poke()

    def dead(self, wanted: set[str]) -> set[str]:
        """Take Ray's word on which of these nodes' agents have died since the last call; they are agents no more."""
        found = {name for name in wanted & self._agents.keys() if not self._port.agent_alive(name)}
        for name in found:
            self._agents.pop(name, None)
        return found

    def missing(self, wanted: set[str]) -> set[str]:
        """Return which of these nodes have no agent."""
        return wanted - self._agents.keys()

    def replace(self, name: str) -> None:
        """Put a new agent where the node lives on: it finishes what is left."""
        if name in {node.name for node in self._port.nodes()} and name not in self._agents:
            self.hello_all([name], tolerant=True)

    def leave(self) -> None:
        """Make all of them end; leases end what they held."""
        for agent in list(self._agents.values()):
            agent.leave()
