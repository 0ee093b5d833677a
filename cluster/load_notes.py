"""What loads say of themselves beside figures, as events of the run's story: facts once, yields to heat and returns each. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from actors import lease
from actors.control import StatsPage
from actors.messages import Event

TEXTS: Final[dict[int, tuple[str, str]]] = {  # bit -> severity, what it means
    lease.NOTE_NICE_REFUSED: ("warning", "loads run at a lower priority than asked: raising it is not permitted"),
    lease.NOTE_NO_POPULATE: ("info", "loads touch memory page by page: the kernel cannot populate it"),
    lease.NOTE_NO_RECORDING: ("warning", "{} records nothing: the agent's segment could not be opened"),
    lease.NOTE_NO_SENSOR: ("info", "loads do not yield to heat: temperatures are unavailable"),
    lease.NOTE_NO_DIRECT: ("info", "{} reads and writes through the page cache: its file system has no direct access"),
    lease.NOTE_SIMULATED_CLOCK: ("info", "{} slows the clock down, simulated: it takes cores first, the governor is left alone"),
}
Heat = tuple[bool, str, float | None]
Cascade = tuple[tuple[tuple[str, ...], ...], int, int, float]


@dataclass(slots=True)
class LoadNotes:
    """What was told so far, by run and operation."""

    _told: dict[tuple[str, str], int] = field(default_factory=dict)
    _heat: dict[tuple[str, str], Heat] = field(default_factory=dict)
    _cascades: dict[tuple[str, str], Cascade] = field(default_factory=dict)

    def look(self, run: str, operation: str, stats: StatsPage, slot: int) -> list[Event]:
        """Return events for what a slot says now and did not say before. Call it only while the slot is the operation's."""
        key, data = (run, operation), {"run": run, "operation": operation}
        notes, events = stats.word(slot, lease.NOTES), []
        for bit, (severity, text) in TEXTS.items():
            whose = key if "{}" in text else (run, "")  # a fact of the node is told once, not of each operation
            if notes & bit and not self._told.get(whose, 0) & bit:
                self._told[whose] = self._told.get(whose, 0) | bit
                events.append(Event("load_note", text.format(operation), severity, data=data))
        heat = lease.read_heat(stats, slot)
        if heat is not None and heat != self._heat.get(key):
            self._heat[key] = heat
            events.append(_throttle(operation, heat, data))
        cascade = lease.read_cascade(stats, slot)
        if cascade is not None and cascade != self._cascades.get(key):
            self._cascades[key] = cascade
            events.append(_cascade(operation, cascade, data))
        return events

    def forget(self, run: str) -> None:
        """Forget a run that has ended."""
        for known in (self._told, self._heat, self._cascades):
            for key in [key for key in known if key[0] == run]:
                del known[key]


def _throttle(operation: str, heat: Heat, data: dict[str, str]) -> Event:
    yields, sensor, celsius = heat
    seen = sensor if celsius is None else f"{sensor} is at {celsius:.1f} °C"
    told = {**data, "sensor": sensor, **({} if celsius is None else {"celsius": celsius}), "yields": yields}
    if yields:
        return Event("throttle", f"{operation} yields to heat: {seen}", "warning", data=told)
    return Event("throttle", f"{operation} goes on: {seen}", "info", data=told)


def _cascade(operation: str, cascade: Cascade, data: dict[str, str]) -> Event:
    rounds, services, depth, span_s = cascade
    failed = sum(map(len, rounds))
    order = ", then ".join(" and ".join(names) for names in rounds)
    message = f"{operation}: {failed} of {services} services have failed within {span_s:.1f} s, {depth} deep: {order}"
    told = {**data, "rounds": [list(names) for names in rounds], "failed": failed, "services": services, "depth": depth, "time_s": span_s}
    return Event("cascade", message, "info", data=told)
