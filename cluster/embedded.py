"""An embedded Ray, armed like a fault: its folder and its processes are undo records before its first process starts.

The host process (`embedded_host`) leads a session of its own; the guardian holds two records, the session and the folder, in
a slot that the driver renews. When the driver dies or hangs, the guardian ends every process of the session and removes
the folder. Nothing of it touches HOME or Ray's default folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, StressError
from actors.guardian import GuardianClient
from actors.origin import code_id
from actors.proc import read_stat

HEALTH: Final = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}
TOKEN_FILE: Final = "stress-cluster-embedded"  # noqa: S105  # a file name


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that keep an embedded Ray inside its private folder and under its own token.

    They must be in the environment of a process before it imports Ray.
    """
    return {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        **{f"RAY_{name}": str(value) for name, value in HEALTH.items()},
    }


def choose_folder() -> Path:
    """Return where the private folder will be: short, because socket paths end at 107 bytes, and random."""
    base = next((path for path in ("/tmp", "/var/tmp") if os.access(path, os.W_OK)), tempfile.gettempdir())  # noqa: S108
    return Path(base) / f"sc-{secrets.token_hex(4)}"


def fence(driver: int) -> dict[str, Any]:
    """Return what names a driver to the guardian as the owner of its embedded Ray's slot."""
    return {"cluster": "embedded", "node": f"driver-{driver}", "epoch": 0, "incarnation": driver}


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of an embedded Ray's slot.

    Driver and host renew it both: Ray's start holds the driver's interpreter for seconds on a busy machine, which is no death. The
    host does so only while the driver is alive and not stopped.
    """

    slot: int
    generation: int
    driver: int
    driver_starttime: int
    lease_s: float

    def grant(self, guardian: GuardianClient, clock: Clock) -> None:
        """Renew once, from now on."""
        deadline_ns = clock.boot_ns() + round(self.lease_s * SECOND_NS)
        guardian.call("grant", leases=[[self.slot, self.generation, deadline_ns]], timeout_s=self.lease_s, **fence(self.driver))

    def keep(self, state_dir: Path) -> None:
        """Renew from the host until the driver has ended; what cannot be renewed lapses, and the guardian ends this Ray."""
        clock = SystemClock()
        with GuardianClient.connect(state_dir, role="driver", code_id=code_id(), **fence(self.driver)) as guardian:
            while (stat := read_stat(self.driver)) is not None and stat.starttime == self.driver_starttime:
                if stat.state not in "TtZX":
                    with contextlib.suppress(StressError):  # the next turn tries again
                        self.grant(guardian, clock)
                clock.sleep(self.lease_s / 5)


class EmbeddedRay:
    """One embedded Ray, from its records to their undo. `seconds` is how long Ray itself took to start.

    `on_death` is called on a thread of its own when the host process ends before `stop`: calls into such a Ray may hang.
    """

    def __init__(
        self,
        guardian: GuardianClient,
        state_dir: Path,
        run: str,
        nodes: int,
        lease_s: float,
        on_death: Callable[[], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._guardian, self._run, self._nodes, self._lease_s = guardian, run, nodes, lease_s
        self._clock, self._on_death, self._state_dir = clock or SystemClock(), on_death, state_dir
        self._entry = state_dir / "embedded" / f"{run}.json"
        self._slot: dict[str, Any] = {}
        self._host: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self.folder = choose_folder()
        self.address = ""
        self.seconds = 0.0
        self._begun_ns = 0

    def start(self) -> None:
        """Arm the records, start the host, wait until its head can be connected to. Raises `HarnessError` with the host's last words."""
        self._begun_ns = self._clock.boot_ns()
        token = secrets.token_hex(16)
        self._open_slot()
        self._arm("tree", {"path": str(self.folder), "token": token, "token_file": TOKEN_FILE})
        self.folder.mkdir(mode=0o700)  # only now: what is refused or dies before leaves nothing
        (self.folder / TOKEN_FILE).write_text(token)
        key = self.folder / "token"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
        log = (self.folder / "host.log").open("wb")
        self._host = subprocess.Popen(
            [sys.executable, "-m", "cluster.embedded_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment(self.folder)},
            start_new_session=True,
        )
        log.close()
        # The host waits for its request before it starts anything: the record is armed first.
        self._arm("session", {"sid": self._host.pid, "starttime": start_time(self._host.pid)})
        threading.Thread(target=self._renew, name="embedded-lease", daemon=True).start()
        threading.Thread(target=_import_meanwhile, name="imports", daemon=True).start()
        self._send_request()
        self.address = str(self._answer()["address"])
        self._entry.parent.mkdir(exist_ok=True, mode=0o700)
        self._entry.write_text(
            json.dumps(
                {
                    "run": self._run,
                    "address": self.address,
                    "folder": str(self.folder),
                    "pid": self._host.pid,
                    "starttime": start_time(self._host.pid),
                }
            )
        )

    def await_nodes(self) -> None:
        """Wait until all raylets have joined; `seconds` is what Ray took from the beginning. Raises `HarnessError`."""
        self._answer()
        self.seconds = (self._clock.boot_ns() - self._begun_ns) / SECOND_NS

    def stop(self) -> list[dict[str, Any]]:
        """Have the guardian end every process, remove the folder and verify; return how each record ended.

        Nothing in this Ray is worth a graceful end: what matters was delivered, and one process after the other takes seconds.
        """
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._entry.unlink()
        self._ended.set()
        outcomes: list[dict[str, Any]] = []
        if self._slot:
            answer = self._guardian.call(
                "close_slot", slot=self._slot["slot"], generation=self._slot["generation"], grace_s=0.0, timeout_s=60.0
            )
            outcomes = answer["outcomes"]
        if self._host is not None:
            self._host.wait()
        return outcomes

    def _open_slot(self) -> None:
        nothing = {"cpu_cores": 0.0, "memory_bytes": 0, "disk_bytes": 0}
        self._slot = self._guardian.call(
            "open_slot",
            run=self._run,
            operation="embedded@driver",
            amounts=nothing,
            machine_limits=nothing,
            release_s=0.0,
            sharers=1,
            **fence(os.getpid()),
        )
        self._lease().grant(self._guardian, self._clock)

    def _lease(self) -> Lease:
        return Lease(self._slot["slot"], self._slot["generation"], os.getpid(), start_time(os.getpid()), self._lease_s)

    def _arm(self, kind: str, fields: dict[str, Any]) -> None:
        self._guardian.call("arm", slot=self._slot["slot"], generation=self._slot["generation"], kind=kind, fields=fields)

    def _renew(self) -> None:
        assert self._host is not None
        lease = self._lease()
        while not self._ended.wait(self._lease_s / 5):
            died = self.seconds and self._host.poll() is not None and not self._stopping.is_set()
            if died and self._on_death is not None:
                self._on_death()
            with contextlib.suppress(StressError):  # the next turn tries again; if none succeeds, the guardian ends this Ray
                lease.grant(self._guardian, self._clock)

    def _send_request(self) -> None:
        host = self._host
        assert host is not None
        assert host.stdin is not None
        request = {"folder": str(self.folder), "nodes": self._nodes, "state_dir": str(self._state_dir), "lease": asdict(self._lease())}
        host.stdin.write((json.dumps(request) + "\n").encode())
        host.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """Return what the host says next."""
        host = self._host
        assert host is not None
        assert host.stdout is not None
        line = host.stdout.readline()
        if not line:
            host.wait()
            words = (self.folder / "host.log").read_text(errors="replace").strip().splitlines()
            raise HarnessError(
                "internal", f"the embedded Ray did not start: {words[-1] if words else f'code {host.returncode}'}", "see doctor"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _import_meanwhile() -> None:
    """Import what this process needs later and what is slow to import, while Ray starts and leaves cores idle."""
    for name in ("ray_port", "orchestrator_shell", "mirror", "analysis.report"):
        importlib.import_module(f"{__package__}.{name}")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when it is gone."""
    stat = read_stat(pid)
    return stat.starttime if stat is not None and stat.state not in "ZX" else 0


def find_embedded(state_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the embedded Rays of this STATE whose host is alive, newest first."""
    entries = sorted((state_dir / "embedded").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries:
        with contextlib.suppress(OSError, ValueError, HarnessError):
            entry = json.loads(path.read_text())
            if start_time(entry["pid"]) == entry["starttime"]:
                yield entry
