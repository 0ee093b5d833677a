"""One test host: namespaces that look like a machine of its own. A fabric makes and connects them.

It has its own network, process tree, host name, IPC, /dev/shm, Ray temp folder and state folder, and shares the other files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from support.waiting import until
from sweep import COMMAND_TIMEOUT_S, FabricError, folder_of, own_cgroup, remove_cgroups, sh, start_time

HEAD_PORT: Final = 6379
OBJECT_STORE_BYTES: Final = 80_000_000  # Ray's least is 75 MB
SHM_BYTES: Final = 256 << 20

# Run by each host's init. It hides the other hosts' folders, and puts this host's own at the same path on each of them (`here`).
INIT: Final = """
hostname {name}
mount -t tmpfs -o size={shm_bytes} tmpfs /dev/shm
mkdir /dev/shm/own
mount --bind {base}/{name} /dev/shm/own
cp {base}/hosts {base}/{name}/hosts
mount -t tmpfs -o size=1m,mode=755 tmpfs {base}
mkdir {base}/here
mount --move /dev/shm/own {base}/here
rmdir /dev/shm/own
mount --bind {base}/here/hosts /etc/hosts
echo up > {base}/here/ready
trap 'exit 0' TERM
while :; do sleep 3600 & wait $! || :; done
"""


@dataclass(slots=True)
class Host:
    """One machine of a fabric. Process ids are those seen from outside."""

    tag: str
    name: str
    address: str
    environment: dict[str, str] = field(default_factory=dict)
    init_pid: int = 0
    cgroup: Path | None = None
    _unshare: subprocess.Popen[bytes] | None = None

    @property
    def netns(self) -> str:
        return f"{self.tag}-{self.name}"

    @property
    def folder(self) -> Path:
        """This host's folder as seen from outside."""
        return folder_of(self.tag) / self.name

    @property
    def here(self) -> Path:
        """The same folder as seen on the host."""
        return folder_of(self.tag) / "here"

    @property
    def state(self) -> Path:
        """STATE of this host as seen from outside."""
        return self.folder / "state"

    @property
    def alive(self) -> bool:
        return self.init_pid > 0 and start_time(self.init_pid) != ""

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """Return the environment of commands on this host."""
        mine = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",  # nobody reads them, and each process of Ray would send its own
            "RAY_TMPDIR": str(self.here),
            "TMPDIR": str(self.here / "tmp"),  # where a dashboard that is killed leaves its sockets
            "STRESS_CLUSTER_STATE_DIR": str(self.here / "state"),
        }
        return {**os.environ, **mine, **self.environment, **(more or {})}

    def boot(self) -> None:
        """Start the host's init; its network must be there already."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "tmp").mkdir(exist_ok=True)
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        script = INIT.format(name=self.name, base=folder_of(self.tag), shm_bytes=SHM_BYTES)
        if parent := own_cgroup():
            self.cgroup = parent / self.netns
            self.cgroup.mkdir(exist_ok=True)
        # Not `ip netns exec`, which mounts a fresh /sys and so hides /sys/fs/cgroup.
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private"]
        argv = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", *spaces, "setsid", "sh", "-ec", script]
        log = self.folder / "init.log"
        with log.open("ab") as out:
            started = subprocess.Popen(
                self._grouped(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
            )
        self._unshare = started
        until(lambda: ready.exists() or started.poll() is not None, 10, f"{self.name} up")
        if started.poll() is not None:
            raise FabricError(f"{self.name} did not boot: {log.read_text()}")
        self.init_pid = _only_child(started.pid)

    def power_off(self) -> None:
        """End all processes of the host at the same instant, as a loss of power does."""
        if self.alive:
            os.kill(self.init_pid, signal.SIGKILL)
        if self._unshare is not None:
            self._unshare.wait(10)
        self.init_pid, self._unshare = 0, None
        remove_cgroups(self.netns)

    def pause(self) -> None:
        """SIGSTOP everything but init: a machine that hangs."""
        self.run("sh", "-c", "kill -STOP -1")

    def resume(self) -> None:
        """Let a paused host go on, with the nsenter processes outside, which stop together with what they wait for."""
        for pid in sh("ip", "netns", "pids", self.netns).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGCONT)

    def pids(self, match: str = "") -> dict[int, str]:
        """Return the host's live processes whose command line has this text, init left out: pid -> command line."""
        outside, pid_space, net_space = (Path(path).readlink() for path in ("/proc/self/ns/pid", *self._spaces()))
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # gone, or a zombie without namespaces
                if not entry.name.isdigit() or int(entry.name) == self.init_pid:
                    continue
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                space = (entry / "ns/pid").readlink()
                # A load may have a process namespace of its own; the nsenter processes outside share the network only.
                inside = space == pid_space or (space != outside and (entry / "ns/net").readlink() == net_space)
                if inside and match in line and line != "sleep 3600":
                    found[int(entry.name)] = line
        return found

    def _spaces(self) -> tuple[str, str]:
        return f"/proc/{self.init_pid}/ns/pid", f"/proc/{self.init_pid}/ns/net"

    def _grouped(self, argv: Sequence[str]) -> list[str]:
        """Return the command that joins this host's cgroup first; nsenter does not do so."""
        return ["sh", "-c", f'echo 0 > {self.cgroup}/cgroup.procs && exec "$@"', "sh", *argv] if self.cgroup else list(argv)

    def argv(self, *command: str) -> list[str]:
        """Return the command that runs `command` on this host, from the current folder."""
        # Without a session of its own the process group would be 0 inside, and killpg(0) would hit the whole host.
        enter = ["nsenter", "-t", str(self.init_pid), "-n", "-m", "-u", "-i", "-p", "--"]
        return self._grouped([*enter, "env", "-C", os.getcwd(), "setsid", "-w", *command])  # noqa: PTH109  # env -C wants text

    def run(
        self, *command: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; raises `FabricError` if it fails and `check` is set."""
        # Files rather than pipes: a daemon left behind by the command would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "env": self.env(env)}
            code = subprocess.run(self.argv(*command), timeout=timeout_s, check=False, **options).returncode
            out.seek(0)
            err.seek(0)
            said, complained = out.read(), err.read()
        if check and code:
            raise FabricError(f"{self.name}: {' '.join(command)} -> {code}\n{said}{complained}")
        return subprocess.CompletedProcess(command, code, said, complained)

    def popen(self, *command: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a command. The process returned waits outside for it; `pid_of` gives the command's own pid."""
        return subprocess.Popen(self.argv(*command), env=self.env(env), **{"stdin": subprocess.DEVNULL, **options})

    def pid_of(self, started: subprocess.Popen[Any]) -> int:
        """Return the pid of what `popen` started, which is what to signal."""
        return until(lambda: _only_child(started.pid), 10, "the command runs on the host")

    def ray_start(self, head: Host | None = None, dashboard: bool = False, num_cpus: int = 2, env: dict[str, str] | None = None) -> None:
        """Join that head, or be the head. `ray_*` values of the head's environment reach all nodes."""
        common = [
            f"--node-ip-address={self.address}",
            f"--num-cpus={num_cpus}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--labels=host={self.name}",
            f"--node-name={self.name}",
            "--disable-usage-stats",
            "--include-log-monitor=false",  # nobody reads logs through it, and it looks at those of all workers that ever were
        ]
        if head is None:
            special = ["--head", f"--port={HEAD_PORT}", f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=0.0.0.0"]
        else:
            special = [f"--address={head.address}:{HEAD_PORT}"]
        self.run("ray", "start", *special, *common, env=env)

    def ray_stop(self) -> None:
        """Force Ray off this host, as an operator would; other hosts keep theirs."""
        self.run("ray", "stop", "--force")


def _only_child(pid: int) -> int:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0
    return 0
