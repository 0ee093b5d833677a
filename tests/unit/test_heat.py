"""A load yields to heat and comes back, with a gap between; what no sensor says is never a number; and the run's story tells of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import lease
from actors.clock import VirtualClock
from actors.control import ControlPage, ControlWriter, StatsPage
from actors.heat import GAP_C, THROTTLING, Heat, Reading
from actors.host import read_heat
from actors.lease import LeaseWatch
from cluster.load_notes import LoadNotes

LIMIT_C = 85.0
STORY = [  # temperatures, throttles, whether it yields after them
    pytest.param([({"a": 60.0}, None, False), ({"a": 84.9}, None, False), ({"a": 85.0}, None, True)], id="at-the-limit"),
    pytest.param([({"a": 90.0}, None, True), ({"a": 80.1}, None, True), ({"a": 80.0}, None, False)], id="back-below-the-gap"),
    pytest.param([({"a": 90.0, "b": 40.0}, None, True), ({"a": 70.0, "b": 82.0}, None, True)], id="the-hottest-counts"),
    pytest.param([({}, None, False), ({"a": math.nan, "b": 255.0, "c": -127.0}, None, False)], id="no-sensor-that-can-be-believed"),
    pytest.param([({"a": 90.0}, None, True), ({}, None, True)], id="sensors-that-went-do-not-cool"),
    pytest.param([({"a": 60.0}, 7, False), ({"a": 60.0}, 8, True), ({"a": 60.0}, 8, True)], id="throttled-once-more"),
    pytest.param([({}, 7, False), ({}, 9, True), ({}, 9, True), ({}, 9, False)], id="calm-again-without-a-sensor"),
    pytest.param([({"a": 60.0}, 8, False), ({"a": 60.0}, 8, False)], id="throttled-long-ago"),
]


@pytest.mark.parametrize("steps", STORY)
def test_when_a_load_yields(steps: list[tuple[dict[str, float], int | None, bool]]) -> None:
    """A second passes between readings; throttling counts as over after two."""
    heat, found = Heat(LIMIT_C), []
    for at, (celsius, throttled, _) in enumerate(steps):
        heat = heat.judge(Reading(celsius, throttled), float(at))
        found.append(heat.yields)
    assert found == [want for *_, want in steps]


@given(st.lists(st.floats(20, 110), min_size=1, max_size=60))
def test_it_changes_at_the_limit_and_below_the_gap_only(celsius: list[float]) -> None:
    """Whatever the temperature does: it begins to yield at the limit, ends a gap below, and names sensor and value each time."""
    heat = Heat(LIMIT_C)
    for at, value in enumerate(celsius):
        before, heat = heat, heat.judge(Reading({"core": value}), at * 0.1)
        if heat.yields != before.yields:
            assert (value >= LIMIT_C) if heat.yields else (value <= LIMIT_C - GAP_C)
            assert (heat.sensor, heat.celsius) == ("core", value)
        else:
            assert heat.yields or value < LIMIT_C
            assert not heat.yields or value > LIMIT_C - GAP_C


def test_sensors_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk's temperature is none of it; without sensors and counts there is nothing, which is not a number."""
    reading = SimpleNamespace
    cores = [reading(label="Package id 0", current=61.5), reading(label="", current=60.0)]
    sensors = {"nvme": [reading(label="", current=99.0)], "coretemp": cores}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert read_heat(tmp_path) == Reading({"coretemp/Package id 0": 61.5, "coretemp/1": 60.0})
    for cpu, count in ((0, 3), (1, 4)):
        folder = tmp_path / f"cpu{cpu}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    assert read_heat(tmp_path) == Reading({}, 7)
    monkeypatch.delattr(psutil, "sensors_temperatures")
    found = read_heat(tmp_path / "nowhere")
    assert (found.available, found.hottest, found.throttled) == (False, None, None)


def test_the_story_tells_of_each_yield_and_return_once() -> None:
    """Sensor and temperature travel through the stats page; every fact of a load is told once, and again of the next run."""
    writer, control_fd = ControlWriter.create()
    stats, stats_fd = StatsPage.create()
    watch = LeaseWatch(ControlPage.from_fd(control_fd), stats, 3, 7, VirtualClock())
    notes = LoadNotes()
    assert notes.look("r", "0.CpuLoad@n", stats, 3) == []
    watch.note(lease.NOTE_NO_SENSOR)
    assert [(one.kind, one.data["run"]) for one in notes.look("r", "0.CpuLoad@n", stats, 3)] == [("load_note", "r")]
    assert notes.look("r", "1.CpuLoad@n", stats, 3) == []  # of the node, not of the operation
    watch.note(lease.NOTE_SIMULATED_CLOCK)
    assert ["simulated" in one.message for one in notes.look("r", "0.CpuLoad@n", stats, 3)] == [True]
    watch.heat(yields=True, sensor="coretemp/Package id 0", celsius=91.25)
    (hot,) = notes.look("r", "0.CpuLoad@n", stats, 3)
    assert (hot.kind, hot.severity, hot.message) == (
        "throttle",
        "warning",
        "0.CpuLoad@n yields to heat: coretemp/Package id 0 is at 91.2 °C",
    )
    assert (hot.data["sensor"], hot.data["celsius"], hot.data["yields"]) == ("coretemp/Package id 0", 91.25, True)
    assert notes.look("r", "0.CpuLoad@n", stats, 3) == []
    watch.heat(yields=False, sensor=THROTTLING, celsius=None)
    (cool,) = notes.look("r", "0.CpuLoad@n", stats, 3)
    assert (cool.severity, cool.data["yields"], "celsius" in cool.data) == ("info", False, False)
    assert cool.message.startswith("0.CpuLoad@n goes on: the processor's own")
    notes.forget("r")
    assert len(notes.look("r", "0.CpuLoad@n", stats, 3)) == 3
    writer.close()
    for fd in (control_fd, stats_fd):
        os.close(fd)
