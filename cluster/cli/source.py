"""Finds the scenario that a command names, and the settings that go with it. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from actors.errors import InputError
from scenarios import Scenario, catalogue, text
from scenarios.exporters import Destination
from scenarios.plan import Plan
from scenarios.units import parse_duration

from .. import settings as settings_module
from ..settings import Settings
from .report import find_run

REPLAY: Final = "replay:"
SUFFIXES: Final = (".py", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scenario ready to run: the value, its canonical text, and the stored plan and run that it replays."""

    scenario: Scenario
    text: str
    replay_plan: str = ""
    replay_of: str | None = None

    @property
    def name(self) -> str:
        """Return the scenario's name."""
        return self.scenario.name

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.scenario.seed


def load(
    named: str, sets: Sequence[str], seed: int | None, config: Path | None = None, out: str | None = None, *, exports: Sequence[str] = ()
) -> Loaded:
    """Return the scenario of a catalogue name, a file, or `replay:RUN`, with `--set`, `--seed` and `--export` applied.

    `config` and `out` say, as for the run itself, where the run to be replayed lies.
    Raises `InputError` (exit code 2) with the place, what was expected and what to do.
    """
    if named.startswith(REPLAY):
        if exports:
            raise InputError(
                "invalid_setting", "a replay has the exporters of the run that it repeats", "leave --export out, or `export` it later"
            )
        return _replay(named.removeprefix(REPLAY), sets, seed, settings_module.load({"out": out}, config=config))
    is_file = named.endswith(SUFFIXES) or "/" in named or Path(named).is_file()
    scenario = text.load_file(named) if is_file else catalogue.get(named)
    if sets:
        scenario = text.apply_settings(scenario, sets)
    if seed is not None:
        scenario = replace(scenario, seed=seed)
    if exports:
        scenario = _with_exports(scenario, exports)
    return Loaded(scenario, text.dump(scenario))


def _with_exports(scenario: Scenario, exports: Sequence[str]) -> Scenario:
    """Return the scenario with a destination more for each `TYPE:PATH`, named by the type, or `TYPE-2` where that is taken."""
    found = list(scenario.exporters.destinations)
    for one in exports:
        kind, colon, path = one.partition(":")
        if not colon:
            raise InputError("invalid_setting", f"--export {one!r}: expected TYPE:PATH", "such as --export csv:metrics.csv")
        number = 1 + sum(other.name == kind or other.name.startswith(f"{kind}-") for other in found)
        try:
            found.append(Destination(kind, path, kind if number == 1 else f"{kind}-{number}"))
        except InputError as error:
            raise InputError("invalid_setting", f"--export {one!r}: {error.message}", error.hint) from error
    return replace(scenario, exporters=replace(scenario.exporters, destinations=tuple(found)))


def _replay(run: str, sets: Sequence[str], seed: int | None, settings: Settings) -> Loaded:
    if sets or seed is not None:
        raise InputError("invalid_setting", "a replay repeats a stored plan: --set and --seed would change it", "leave them out")
    folder = find_run(run, [Path(settings.out), Path(settings.state_dir) / "runs"])
    stored = _stored_plan(folder / "plan.json")
    plan = Plan.from_json(stored)
    return Loaded(plan.scenario, text.dump(plan.scenario), stored.decode(), folder.name)


def _stored_plan(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            "not_found", f"{path} cannot be read, so there is nothing to replay: {error}", "run the scenario itself"
        ) from error


def resolve_settings(loaded: Loaded, config: Path | None, **flags: Any) -> Settings:
    """Return the settings for a scenario: what the document says stands between the environment and the flags.

    `__` in a flag's name stands for the dot in a setting's.
    """
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return settings_module.load(given, scenario=settings_module.said_by(loaded.scenario), config=config)


def recorded(loaded: Loaded, settings: Settings) -> Loaded:
    """Return the scenario at the level of the settings; a replay keeps the one that its plan has."""
    scenario = loaded.scenario if loaded.replay_plan else settings_module.recorded(loaded.scenario, settings)
    return loaded if scenario == loaded.scenario else replace(loaded, scenario=scenario, text=text.dump(scenario))


def duration(value: str | None, option: str) -> float | None:
    """Return the seconds of an option such as `90`, `90s` or `5m`; raises `InputError` that names the option."""
    if value is None:
        return None
    try:
        seconds = parse_duration(value if value[-1:].isalpha() else f"{value}s")
    except InputError as error:
        raise InputError("invalid_value", f"{option} is {value!r}: {error.message}", "write 90s, 5m or 1h30m") from error
    if seconds <= 0:
        raise InputError("invalid_value", f"{option} is {value!r}, expected more than nothing", "leave it out for no limit")
    return seconds
