"""StressNg: instances of stress-ng under our lease, ceiling and reservation. Runs in a load process, whose working folder is its scratch.

Each instance is a stress-ng of its own with one worker, so that they can be added and taken away while it runs. The load process works
itself only to look: at its lease, at the CPU time of the tree, at what the tree holds. What the tree may not use it is held still for.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..clock import SECOND_NS, thread_cpu_ns
from ..errors import HarnessError, InputError
from ..lease import NOTE_NO_RECORDING, LeaseWatch, Order
from ..messages import Amounts, Capacity, Operation
from ..meters import open_reporter
from ..pacing import Pacer
from ..simulator import absolute, peak_amounts
from . import rules, tree
from .record import RECORD, instances

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

LOOK_S: Final = 0.01
SLOW_LOOK_S: Final = 0.05  # where each hold and each look is a walk through /proc
WEIGH_S: Final = 1.0  # how often what the tree holds is looked at, unless that takes long itself
WEIGH_SHARE: Final = 0.05  # of a core, at most
FINISH_S: Final = 1.5  # for the figures at the end: within the grace that a stop gives by default
OVERRUN_S: Final = 60  # after its end stress-ng ends by itself, whatever else fails
OUTPUT_BYTES: Final = 16_384
YAML_BYTES_MAX: Final = 1 << 20
MEMORY_SLACK: Final = 1.1
CORES_SLACK: Final = 1.05  # what busies one core is not held for the time that looking takes


@dataclass(slots=True)
class Instance:
    """One stress-ng. `leave_ns` is when it is killed after it was asked to end, 0 while it is wanted."""

    process: subprocess.Popen[bytes]
    output: int
    figures: Path
    leave_ns: int = 0


class StressNg:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation, self._watch, self._segment_path = operation, watch, segment_path
        self._shape = absolute(operation, capacity)
        self._unit = capacity.cpu_cores if operation.unit == "fraction" else 1.0
        self._stressor, self._text, self._cores = str(options["stressor"]), str(options["arguments"]), float(options["cores"])
        self._most = peak_amounts(operation, capacity)
        self._fixed = 0 if operation.unit == "count" else instances(self._shape.peak(operation.duration_s), operation, options)
        self._folder = Path.cwd()
        self._command: list[str] = []
        self._tree: tree.Tree | None = None
        self._running: list[Instance] = []
        self._numbers = itertools.count(1)
        self._cpu, self._share = Pacer(), Pacer()
        self._last_ns = self._weigh_ns = 0
        self._used_s = 0.0
        self._finished_operations = 0
        self._reporter: Reporter | None = None

    def warm_up(self) -> None:
        """Find stress-ng, check what is asked against it, make its namespaces and group; nothing of it runs yet. Raises `StressError`."""
        path = tree.required()
        known = tree.stressors(path)
        group = tree.own_group(self._watch.slot, self._watch.generation)
        self._tree = tree.Tree(self._folder, group)
        rules.check_on_node(self._stressor, known, rules.Means(group=self._tree.has_group, namespaces=tree.make_namespaces()))
        words = rules.arguments(self._stressor, self._text, known)
        for_s = int(self._operation.duration_s) + OVERRUN_S
        control = ["--timeout", str(for_s), "--temp-path", str(self._folder), "--metrics", "--seed", str(self._operation.seed % (1 << 63))]
        self._command = [path, f"--{self._stressor}", "1", *words, *control]
        self._reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=self._cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Load until the operation's end or a stop; leaves the process, and kills the tree, when the lease ends. Raises `StressError`."""
        assert self._tree is not None, "warm_up comes before run"
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        clock, look_s = self._watch.clock, LOOK_S if self._tree.is_quick else SLOW_LOOK_S
        self._last_ns, self._used_s = start_ns, self._tree.cpu_seconds()
        self._watch.first_slice()
        try:
            while (now_ns := clock.boot_ns()) < end_ns and (order := self._watch.look()) is not Order.DRAIN:
                if order is Order.DEAD:
                    self._tree.kill()
                    self._watch.expire()
                self._follow(self._tree, (now_ns - start_ns) / SECOND_NS, now_ns)
                clock.sleep(min(look_s, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))
            self._finish(self._tree)
        finally:  # whatever went wrong, nothing of it stays
            self._tree.kill()
            if self._reporter is not None:
                self._reporter.close()

    def _follow(self, stress: tree.Tree, elapsed_s: float, now_ns: int) -> None:
        """Bring instances and their pace to what is asked now."""
        ceiling, strength = self._watch.ceiling(), self._shape.value(elapsed_s)
        wanted = self._fixed or round(strength)
        self._end_ended(stress, now_ns)
        self._adjust(stress, wanted, now_ns)
        asked_cores = (strength if self._fixed else wanted * self._cores * CORES_SLACK) * ceiling
        own_cores = self._pace(stress, asked_cores, ceiling, now_ns)
        if now_ns >= self._weigh_ns:
            self._weigh(stress)
        own = own_cores if self._fixed else float(len(self._wanted))
        unit = self._unit
        self._watch.report(asked=strength * ceiling / unit, own=own / unit, cpu_ns=self._cpu_ns(), operations=self._finished_operations)

    def _pace(self, stress: tree.Tree, asked_cores: float, ceiling: float, now_ns: int) -> float:
        """Hold the tree still while it is ahead of what is asked, in CPU time or in time run; return the cores that it used."""
        used_s, elapsed_s = stress.cpu_seconds(), (now_ns - self._last_ns) / SECOND_NS
        spent_s = max(0.0, used_s - self._used_s)
        self._cpu.settle(asked_cores, elapsed_s, spent_s)
        self._share.settle(ceiling, elapsed_s, 0.0 if stress.held else elapsed_s)
        self._used_s, self._last_ns = used_s, now_ns
        hold = self._cpu.debt_s <= 0.0 or (ceiling < 1.0 and self._share.debt_s <= 0.0)
        if hold and not stress.held:
            stress.hold()
        elif stress.held and not hold:
            stress.let_go()
        return spent_s / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def _wanted(self) -> list[Instance]:
        return [one for one in self._running if not one.leave_ns]

    def _adjust(self, stress: tree.Tree, wanted: int, now_ns: int) -> None:
        """Start instances that are missing, and ask those to end that are too many: the youngest first."""
        here = self._wanted
        if len(here) < wanted and stress.held:
            stress.let_go()  # one that begins in a frozen group would never begin
        for _ in range(wanted - len(here)):
            self._start(stress)
            if self._watch.look() is not Order.GO:
                return
        for one in here[wanted:]:
            self._ask_to_end(one, now_ns + round(FINISH_S * SECOND_NS))

    def _start(self, stress: tree.Tree) -> None:
        number = next(self._numbers)
        figures = self._folder / f"figures-{number}.yaml"
        output = os.memfd_create("stress-ng-output", os.MFD_CLOEXEC)
        try:
            process = stress.start([*self._command, "--yaml", str(figures)], output)
        except (OSError, subprocess.SubprocessError) as error:
            os.close(output)
            raise HarnessError("os", f"cannot start stress-ng: {error}") from error
        self._running.append(Instance(process, output, figures))

    def _ask_to_end(self, one: Instance, leave_ns: int) -> None:
        one.leave_ns = leave_ns
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)

    def _end_ended(self, stress: tree.Tree, now_ns: int) -> None:
        """Take the figures of what has ended; raises `HarnessError` when an instance ended that was wanted."""
        for one in list(self._running):
            if one.leave_ns and now_ns >= one.leave_ns and one.process.poll() is None:
                stress.kill_below(one.process.pid)
            if one.process.poll() is None:
                continue
            self._running.remove(one)
            told = os.pread(one.output, OUTPUT_BYTES, max(0, os.fstat(one.output).st_size - OUTPUT_BYTES)).decode("utf-8", "replace")
            os.close(one.output)
            self._record(one.figures)
            if not one.leave_ns:
                code = one.process.returncode
                how = f"was killed by signal {-code}" if code < 0 else f"ended by itself with code {code}"
                raise HarnessError("os", f"stress-ng --{self._stressor} {how}: {rules.reason(told)}")

    def _finish(self, stress: tree.Tree) -> None:
        """Ask all to end, and wait a moment for their figures."""
        clock = self._watch.clock
        give_up_ns = clock.boot_ns() + round(FINISH_S * SECOND_NS)
        stress.let_go()
        for one in self._wanted:
            self._ask_to_end(one, give_up_ns)
        while self._running and clock.boot_ns() < give_up_ns and self._watch.look() is not Order.DEAD:
            self._end_ended(stress, clock.boot_ns())
            clock.sleep(0.002)

    def _record(self, path: Path) -> None:
        for one in rules.figures(_read_yaml(path)):
            self._finished_operations += round(one.operations)
            if self._reporter is not None:
                tell(self._reporter, self._stressor, one)

    def _weigh(self, stress: tree.Tree) -> None:
        """Look at what the tree holds; raises `InputError` when that is more than its slot reserves."""
        begun_ns = thread_cpu_ns()
        held = Amounts(memory_bytes=round(stress.memory_bytes() / MEMORY_SLACK), disk_bytes=stress.disk_bytes(), tasks=stress.tasks())
        for amount in held.beyond(self._most):
            raise InputError(
                "invalid_value",
                f"stress-ng --{self._stressor} holds {getattr(held, amount):,} {amount}, its slot reserves {getattr(self._most, amount):,}",
                f"raise the option {amount}, or give --{self._stressor} options that take less",
            )
        spent_ns = thread_cpu_ns() - begun_ns
        self._weigh_ns = self._watch.clock.boot_ns() + max(round(WEIGH_S * SECOND_NS), round(spent_ns / WEIGH_SHARE))

    def _cpu_ns(self) -> int:
        return round(self._tree.cpu_seconds() * SECOND_NS) if self._tree is not None else 0


def tell(reporter: Reporter, stressor: str, one: rules.Figures) -> None:
    """Record what an instance said at its end."""
    reporter.counter("stressng.bogo.operations", stressor=stressor).record(one.operations)
    reporter.histogram("stressng.bogo.rate", stressor=stressor).record(one.rate)
    reporter.counter("stressng.cpu.user", stressor=stressor).record(one.user_s)
    reporter.counter("stressng.cpu.system", stressor=stressor).record(one.system_s)
    reporter.histogram("stressng.memory.max", stressor=stressor).record(one.memory_bytes)
    reporter.tick()


def _read_yaml(path: Path) -> Any:
    """Return what an instance wrote, None when it was killed before."""
    from ruamel.yaml import YAML  # noqa: PLC0415  # read where there is something to read
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    with suppress(OSError, ValueError, YAMLError), path.open(encoding="utf-8") as file:
        return YAML(typ="safe").load(file.read(YAML_BYTES_MAX))
    return None
