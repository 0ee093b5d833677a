"""The test support itself: a meter reads what a process did, a witness sees a stall, a census finds what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import census, observe
from support.waiting import never, until

SPIN = """
import time
held = bytearray(b"x") * (64 << 20)
while True:
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        held[0] = 1
    time.sleep(0.01)
"""


@pytest.fixture
def spinner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds 64 MiB and uses half of a core."""
    with subprocess.Popen([sys.executable, "-S", "-c", SPIN]) as process:
        yield process
        process.kill()


def test_until_returns_the_answer_or_tells_what_did_not_happen() -> None:
    """A truthy answer comes back; past the bound the message has the description and the last answer."""
    answers = iter([0, "", "yes"])
    assert until(lambda: next(answers), 1) == "yes"
    with pytest.raises(AssertionError, match=r"not within 0.05 s: the moon is cheese; the last answer was \[\]"):
        until(list, 0.05, "the moon is cheese")
    with pytest.raises(AssertionError, match="flag became True"):
        never(lambda: True, 0.05, "flag")


def test_meter_reads_cores_and_memory_of_another_process(spinner: subprocess.Popen[bytes]) -> None:
    """Each interval has the cores that the process used by its own clock, within 20 points, and its anonymous memory."""
    until(lambda: observe.anonymous_bytes(spinner.pid) > 64 << 20, 5)
    before_s = observe.cpu_s(spinner.pid)
    start_s = observe.boot_s()
    with observe.Meter(lambda: [spinner.pid], interval_s=0.4) as meter:
        until(lambda: len(meter.readings) >= 3, 5)
    mean = (observe.cpu_s(spinner.pid) - before_s) / (observe.boot_s() - start_s)
    assert sum(meter.cores()) / len(meter.cores()) == pytest.approx(mean, abs=0.2)
    assert mean > 0.05
    assert all(64 << 20 <= reading.memory_bytes < 96 << 20 for reading in meter.readings)


def test_figures_of_a_process_that_is_gone_are_zero(spinner: subprocess.Popen[bytes]) -> None:
    """A meter does not fail when what it measures dies."""
    spinner.kill()
    spinner.wait()
    pid = spinner.pid
    assert [observe.cpu_s(pid), observe.cpu_fine_s(pid), observe.anonymous_bytes(pid)] == [0, 0, 0]


def test_allocated_bytes_counts_blocks_and_not_length(tmp_path: Path) -> None:
    """A sparse file of a mebibyte holds no blocks; a written one holds all of them."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    assert observe.allocated_bytes(tmp_path / "sparse") == 0
    with (tmp_path / "full").open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert (1 << 20) <= observe.allocated_bytes(tmp_path) < (1 << 20) + (64 << 10)


def test_witness_sees_a_core_that_stood_still() -> None:
    """A witness that was stopped for 0.3 s reports a stall of about that on its core, and none by itself on the others."""
    with observe.Witness() as witness:
        pid = witness._processes[0].pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
    core = min(os.sched_getaffinity(0))
    assert any(stall.core == core and stall.late_ms > 200 for stall in witness.stalls)


@pytest.mark.parametrize(("stalls", "runs"), [(0, 1), (1, 2)], ids=["machine-was-fine", "machine-stood-still"])
def test_promised_repeats_once_and_only_after_a_stall(monkeypatch: pytest.MonkeyPatch, stalls: int, runs: int) -> None:
    """A missed time is a failure at once on a machine that ran, and gets one more chance on one that stood still."""
    seen = []

    class Fake(observe.Witness):
        def __enter__(self) -> observe.Witness:
            self.stalls = tuple(observe.Stall(0, 1.0, 150.0) for _ in range(stalls))
            return self

        def __exit__(self, *_: object) -> None:
            seen.append("closed")

    monkeypatch.setattr(observe, "Witness", Fake)

    @observe.promised
    def late() -> None:
        seen.append("run")
        raise AssertionError("too late")

    with pytest.raises(AssertionError, match="too late"):
        late()
    assert seen.count("run") == runs


def test_census_finds_processes_and_files_left_behind(tmp_path: Path) -> None:
    """What came since the start is named by kind, also a daemon that only has the mark in its environment; what went is not left behind."""
    (tmp_path / "old").write_text("x")
    scope = census.Scope(marks=(str(tmp_path),), folders=(tmp_path,))
    look = lambda: {kind: census.take(scope)[kind] for kind in ("file", "process")}  # all else may be other tests'
    before = census.Comparison(look)
    before.assert_clean()
    (tmp_path / "old").unlink()
    (tmp_path / "new").write_text("x")
    with subprocess.Popen(["sleep", "985"], env={**os.environ, "MARK": str(tmp_path)}, start_new_session=True) as daemon:
        left = before.left_behind()
        with pytest.raises(AssertionError, match="sleep 985"):
            before.assert_clean(0.1)
        daemon.kill()
    assert [line.partition(":")[0] for line in left] == ["file", "process"]
    assert f"process: {daemon.pid}@" in left[1]
    (tmp_path / "new").unlink()
    before.assert_clean(1)
    gone = census.difference(before.before, look()).missing
    assert [line.rpartition("/")[2] for line in gone] == ["old 1 B"]


def test_census_sees_shared_memory_by_name() -> None:
    """A segment in /dev/shm is left behind until it is unlinked."""
    before = census.Comparison(lambda: {"shared memory": census.take()["shared memory"]})
    path = Path(f"/dev/shm/census-{os.getpid()}")
    path.write_text("x")
    try:
        assert f"shared memory: {path.name}" in before.left_behind()
    finally:
        path.unlink()
    assert f"shared memory: {path.name}" not in before.left_behind()


def test_census_taken_elsewhere_reads_the_same(tmp_path: Path) -> None:
    """The script prints what `take` returns, so that it can run on another host."""
    scope = census.Scope(marks=(str(tmp_path),), folders=(tmp_path,))
    argv = [sys.executable, "-S", census.__file__, "--mark", str(tmp_path), str(tmp_path)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert census.from_json(text)["file"] == census.take(scope)["file"]
    taken = census.take(scope)  # once: other tests make groups meanwhile
    assert census.from_json(census.to_json(taken)) == taken


def test_census_of_settings_and_rules_stands_still_and_sees_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks at an idle machine are equal; a rule that came is named with its table, and its counter does not matter."""
    if os.geteuid() == 0:
        first = census.take()
        assert first["sysctl"]
        assert census.difference({"sysctl": first["sysctl"]}, {"sysctl": census.take()["sysctl"]}).left_behind == ()
    rules = ["table inet ours {", "  chain c {", "    ip daddr 10.0.0.1 counter packets 3 bytes 180 drop", "  }", "}"]
    monkeypatch.setattr(census, "_output", lambda *argv: rules if argv[0] == "nft" else [])
    before = frozenset(census._rules())
    assert before == {"table inet ours: table inet ours {", "table inet ours: chain c {", "table inet ours: ip daddr 10.0.0.1  drop"}
    rules[2] = rules[2].replace("packets 3 bytes 180", "packets 9 bytes 999")
    assert frozenset(census._rules()) == before
