"""Telling a cluster to halt or resume, in a process of its own and within a bound.

Ray may take minutes to give up on a dead head, may hang on a half-dead one, and may end the process that asks. None of that may
touch the command, which has halted its own machine already: here Ray lives and dies in a child that answers in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from actors.errors import StressError

from .settings import Settings, from_dict

ORDER_S: Final = 50.0  # for the orchestrator to start agents everywhere and to hear each node confirm
CONNECT_S: Final = 20.0
ANSWER_S: Final = ORDER_S + CONNECT_S + 5.0
PROBE_S: Final = 2.0
LOOK_S: Final = 1.0


class ClusterOrder:
    """One halt or resume on its way to a cluster: begun at once, waited for in `answer`."""

    def __init__(self, address: str, settings: Settings, *, on: bool, above: int, ship: bool) -> None:
        self._address = address
        request = {"address": address, "settings": asdict(settings), "on": on, "above": above, "ship": ship}
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        if not is_answered(address):
            self._trouble = "nothing listens there"
            return
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.halting"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self._process.stdin.close()
            self._process.stdin = None  # it is told all; `communicate` has nothing to add
        except OSError as error:
            self._trouble = f"no process could be started to reach it: {error}"

    def answer(self, within_s: float = ANSWER_S) -> dict[str, Any]:
        """Return what the orchestrator answered: `generation`, `on`, `nodes`, `unreached`, `runs`; without any answer `unreached`."""
        if self._process is None:
            return self._unreached(self._trouble)
        try:
            out = self._output(within_s)
        finally:
            self._end()
        if isinstance(out, str):
            return self._unreached(out)
        try:
            found: dict[str, Any] = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            return self._unreached(f"Ray did not connect within {CONNECT_S:.0f} s, or ended the process that asked")
        return self._unreached(found["error"]) if "error" in found else found

    def _output(self, within_s: float) -> bytes | str:
        """Return what the child prints; or why nothing comes: time is over, or the cluster has ended, for which Ray itself would wait."""
        assert self._process is not None
        for _ in range(max(1, round(within_s / LOOK_S))):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.communicate(timeout=LOOK_S)[0]
            if not is_answered(self._address):
                return "nothing listens there any more"
        return f"no answer within {within_s:.0f} s"

    def _unreached(self, why: str) -> dict[str, Any]:
        return {"nodes": [], "unreached": [f"the cluster at {self._address}: {why}"]}

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()


def is_answered(address: str) -> bool:
    """Tell whether something listens at a HOST:PORT; of other forms of an address only Ray can tell."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError:
        return False
    return True


def order(request: Mapping[str, Any]) -> dict[str, Any]:
    """Connect, find the orchestrator or start one, and have it tell every node."""
    from . import ray_port  # noqa: PLC0415  # only in the child
    from .driver_main import orchestrator_config, shipped  # noqa: PLC0415

    late = threading.Timer(CONNECT_S, os._exit, (1,))  # Ray waits two minutes and longer, and cannot be told not to
    late.daemon = True
    late.start()
    settings = from_dict(request["settings"])
    ray_port.connect(request["address"], ship=shipped(settings) if request["ship"] else ())
    late.cancel()
    config = orchestrator_config(settings)
    found = ray_port.find(ray_port.ORCHESTRATOR)  # of any code and settings: an emergency is no time to compare them
    with contextlib.suppress(ray_port.Lost):  # it was about to leave: the next one begins with what it wrote
        if found is not None:
            return _tell(found, request)
    return _tell(ray_port.orchestrator(config), request)


def _tell(orchestrator: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = orchestrator.call("halt", request["on"], request["above"], timeout_s=ORDER_S, group="control")
    return told


def main() -> int:
    """Answer one request from standard input with one line."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints
    try:
        told = order(json.loads(sys.stdin.readline()))
    except StressError as error:
        told = {"error": str(error)}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    os.write(answer, json.dumps(told).encode() + b"\n")
    os._exit(0)  # Ray's own exit handlers may wait for a cluster that is gone


if __name__ == "__main__":
    raise SystemExit(main())
