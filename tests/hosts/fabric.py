"""Several hosts on one Linux machine, for a real Ray of several nodes: namespaces with addresses of their own on a bridge.

The bridge lies in a namespace of its own, and cuts are made there: the machine itself gets no interface and no rule, and what the
product does with tc or nft inside of a host cannot meet them. Needs root, iproute2, nftables and util-linux: see `sweep.missing`.
A `ray stop` outside of the hosts would end the Ray of all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import sweep
from host import HEAD_PORT, Host
from support.waiting import until
from sweep import FabricError, folder_of, new_tag, sh

SUBNET: Final = "10.77.0"
FORGOTTEN_S: Final = 120.0  # within which Ray declares a node dead whose raylet has ended

# What Ray says is alive, asked on the head by a driver of its own.
ASK_NODES: Final = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print("nodes", json.dumps([node["NodeName"] for node in ray.nodes() if node["Alive"]]))
"""


class Fabric:
    """A switch and its hosts h1, h2, ...: `with Fabric(4) as fabric: fabric.ray_up()`. One per process at a time."""

    def __init__(self, count: int = 4) -> None:
        self.tag = new_tag()
        self.hosts = tuple(Host(self.tag, f"h{i}", f"{SUBNET}.{10 + i}") for i in range(1, count + 1))
        self.cuts: set[tuple[str, str]] = set()
        self._janitor: subprocess.Popen[bytes] | None = None
        self._ray: dict[str, Any] = {}
        self._known_good: dict[str, set[int]] = {}  # Ray's processes when all nodes were last seen alive and no link was touched since

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def targets(self) -> tuple[Host, ...]:
        return self.hosts[1:]

    @property
    def address(self) -> str:
        """The address of the head's GCS, for RAY_ADDRESS."""
        return f"{self.head.address}:{HEAD_PORT}"

    @property
    def switch(self) -> str:
        return f"{self.tag}-sw"

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    def up(self) -> None:
        """Build the switch and boot the hosts."""
        atexit.register(self.down)
        self._janitor = subprocess.Popen(
            [sys.executable, "-S", sweep.__file__, self.tag], stdin=subprocess.PIPE, start_new_session=True, cwd="/"
        )
        base = folder_of(self.tag)
        (base / "here").mkdir(parents=True, exist_ok=True)
        names = "".join(f"{host.address} {host.name}\n" for host in self)
        (base / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
        sh("ip", "netns", "add", self.switch)
        for line in ("link set lo up", "link add br0 type bridge", "link set br0 up"):
            sh("ip", "-n", self.switch, *line.split())
        for host in self:
            self._plug_in(host)
            host.boot()
        self._render()

    def _plug_in(self, host: Host) -> None:
        sh("ip", "netns", "add", host.netns)
        ends = f"link add name e0 netns {host.netns} type veth peer name {_port(host.name)} netns {self.switch}"
        sh("ip", *ends.split())
        sh("ip", "-n", self.switch, *f"link set {_port(host.name)} master br0 up".split())
        # Ray takes 127.0.0.1 for its address on a host without a default route.
        for line in ("link set lo up", f"addr add {host.address}/24 dev e0", "link set e0 up", "route add default dev e0"):
            sh("ip", "-n", host.netns, *line.split())

    def down(self) -> None:
        """Leave nothing; may be called twice."""
        sweep.sweep(self.tag)
        for host in self:
            with contextlib.suppress(FabricError, subprocess.TimeoutExpired, AssertionError):  # swept already
                host.power_off()
        if self._janitor is not None:
            self._janitor.terminate()
            self._janitor.communicate()
            self._janitor = None
        atexit.unregister(self.down)

    # -- faults, all made in the switch

    def cut(self, a: str, b: str | None = None, oneway: bool = False) -> None:
        """Drop what `a` sends to `b` (or to everyone) and, unless `oneway`, what it is sent."""
        self._known_good = {}
        for other in [b] if b else [host.name for host in self if host.name != a]:
            self.cuts |= {(a, other)} if oneway else {(a, other), (other, a)}
        self._render()

    def carrier(self, name: str, up: bool) -> None:
        """Pull or plug the host's cable: unlike with a cut, the host sees that."""
        self._known_good = self._known_good if up else {}
        sh("ip", "-n", self.switch, "link", "set", _port(name), "up" if up else "down")

    def heal(self) -> None:
        """Take all cuts away and plug all cables."""
        self.cuts.clear()
        self._render()
        for host in self:
            self.carrier(host.name, up=True)

    def _render(self) -> None:
        """Write all cuts in one transaction."""
        # A cut in one direction lets address resolution pass, or the other direction would soon be cut as well.
        but = {(a, b): "" if (b, a) in self.cuts else "ether type != arp" for a, b in sorted(self.cuts)}
        rules = "\n".join(f'iifname "{_port(a)}" oifname "{_port(b)}" {some} drop' for (a, b), some in but.items())
        chain = f"chain cuts {{\ntype filter hook forward priority 0; policy accept;\n{rules}\n}}"
        text = f"table bridge fabric\ndelete table bridge fabric\ntable bridge fabric {{\n{chain}\n}}\n"
        sh("nsenter", f"--net=/run/netns/{self.switch}", "nft", "-f", "-", stdin=text)

    # -- Ray

    def ray_up(self, dashboard: bool = False, env: dict[str, str] | None = None, num_cpus: int = 2) -> None:
        """Start Ray: head on the first host, then all others join it at once."""
        self._ray = {"dashboard": dashboard, "env": env, "num_cpus": num_cpus}
        self.head.ray_start(None, **self._ray)
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(lambda host: host.ray_start(self.head, **self._ray), self.targets))

    def rejoin(self, name: str, reboot: bool = False) -> None:
        """Start Ray on a target again as a new node (Ray takes no dead one back); STATE is kept, as a disk would."""
        host = self[name]
        if reboot or not host.alive:
            host.power_off()
            host.boot()
        else:
            host.ray_stop()
        until(lambda: name not in self.nodes_alive(), FORGOTTEN_S, f"Ray knows that {name} is gone", 0.5)  # or it has two of that name
        host.ray_start(self.head, **self._ray)

    def nodes_alive(self) -> set[str]:
        """Return the names of the nodes that Ray has for alive; none when its head does not answer."""
        try:
            done = self.head.run(sys.executable, "-c", ASK_NODES, check=False, timeout_s=30)
        except subprocess.TimeoutExpired:
            return set()
        line = next((line for line in done.stdout.splitlines() if line.startswith("nodes ")), "nodes []")
        return set(json.loads(line.removeprefix("nodes ")))

    def mend(self) -> None:
        """Undo all faults and bring every host and its Ray back; STATE of the hosts stays as it is."""
        self.heal()
        for host in self:
            if host.alive:
                host.resume()
            else:
                host.boot()
        if not self._ray or (self._known_good and self._known_good == self._ray_pids()):
            return
        alive = self.nodes_alive() if self.head.pids("gcs_server") else set()  # without one, asking takes as long as it may
        if self.head.name not in alive:
            with ThreadPoolExecutor(len(self.hosts)) as pool:
                list(pool.map(Host.ray_stop, self.hosts))
            self.ray_up(**self._ray)
            return
        for host in self.targets:
            if host.name not in alive or not host.pids("raylet/raylet"):
                self.rejoin(host.name)
        self._known_good = self._ray_pids()

    def _ray_pids(self) -> dict[str, set[int]]:
        return {host.name: {*host.pids("raylet/raylet"), *host.pids("gcs_server")} for host in self}


def _port(name: str) -> str:
    return f"p-{name}"
