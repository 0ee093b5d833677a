"""A run on an embedded Ray, watched from outside: what several tests of it look at."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from . import census, documents
from .observe import Meter, Reading
from .terminal import Ended, Terminal


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run on an embedded Ray of three raylets, and what was seen of it from outside: one meter reading per second and load."""

    terminal: Terminal
    scenario: str
    ended: Ended
    folder: Path
    cpu: dict[int, list[Reading]]
    memory_bytes: list[int]
    fills_bytes: int
    before: census.Comparison
    temporary: set[str]


def temporary_names() -> set[str]:
    """Return what lies in the places where Ray and we make folders, less the STATEs of test sessions."""
    places = (Path("/tmp"), Path("/var/tmp"))
    named = ("sc-*", "ray*", "pymp-*")
    found = {str(path) for place in places for name in named for path in place.glob(name)}
    return {path for path in found if not Path(path).name.startswith(("sc-state-", "sc-ray-"))}


def run_watched(here: Terminal) -> FinishedRun:
    """Run the small scenario to its end and meter each load process meanwhile."""
    temporary = here.folder / "tmp"
    temporary.mkdir()
    here.settings["TMPDIR"] = str(temporary)
    folders = (here.home, temporary, Path("/tmp/ray"), Path.home() / ".ray")
    names = temporary_names()
    before = census.Comparison(lambda: census.take(census.Scope(marks=(str(here.state),), folders=folders)))
    hypotheses = (documents.MEMORY_STAYS, documents.ACTORS_ANSWER)
    scenario = documents.write(
        here.folder, documents.document(for_s=10, hypotheses=hypotheses, seed=3, tolerance=None, profile="aggressive")
    )
    command = here.start("run", scenario, "--nodes", "3", "--json")
    here.await_load(6)
    pids = here.loads()
    fills = 0
    with contextlib.ExitStack() as stack:
        meters = {pid: stack.enter_context(Meter(lambda pid=pid: [pid])) for pid in pids}
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            fills = max([fills, sum(path.stat().st_blocks * 512 for path in here.fills())])
            time.sleep(0.25)
    ended = command.wait(60)
    cpu = {pid: meter.readings for pid, meter in meters.items()}
    memory = [max([reading.memory_bytes for reading in readings], default=0) for readings in cpu.values()]
    return FinishedRun(here, scenario, ended, here.run_dir(), cpu, memory, fills, before, names)
