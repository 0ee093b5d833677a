"""Bringing a run directory to where its user looks: from STATE of this machine, or from the run's aggregator.

The aggregator writes under STATE on its own node, and the driver mirrors from there. When the driver died or went away on purpose,
OUT has less than STATE; `report` and `recover` bring the rest. Nothing here judges a run or ends one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from actors.errors import InputError

from .files import read_json
from .mirror import RemoteDirectory, copy_file, identity, mirror
from .stored import judge_status

ATTEMPTS: Final = 3  # the log may become Parquet between its listing and its reading
LAST: Final = ("summary.json", "manifest.json")  # what says that a run has ended comes after what it ended with
RUN_ID: Final = re.compile(r"\w[\w.-]*")
OWNED: Final = ("log/", "metrics/", "samples/")  # folders in which a file that the source no longer has would count twice


class LocalDirectory:
    """A run directory of this machine, asked as its aggregator would be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def call(self, method: str, *args: Any, timeout_s: float = 10.0) -> Any:  # noqa: ARG002  # the form of a remote one
        """Answer `hello`, `files` or `read`."""
        answers: dict[str, Callable[..., Any]] = {"hello": self._hello, "files": self._files, "read": self._read}
        return answers[method](*args)

    def _hello(self) -> dict[str, Any]:
        return {"directory_identity": identity(self.directory)}

    def _files(self) -> list[dict[str, Any]]:
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file() and not path.name.startswith("."))
        return [{"name": str(path.relative_to(self.directory)), "size": path.stat().st_size} for path in paths]

    def _read(self, name: str, offset: int, size: int) -> bytes:
        with (self.directory / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)


def is_whole(run_dir: Path) -> bool:
    """Tell whether nothing can be missing here: the run has ended, was judged, and every stream has arrived."""
    manifest, summary = read_json(run_dir / "manifest.json") or {}, read_json(run_dir / "summary.json")
    return manifest.get("status", "running") != "running" and summary is not None and not summary.get("outstanding")


def home_of(manifest: Mapping[str, Any]) -> Path | None:
    """Return the run directory that the run's driver wrote, when it is here: it says itself that it is this run's."""
    recorded = manifest.get("out")
    if not recorded or not manifest.get("run"):
        return None
    home = Path(str(recorded))
    with contextlib.suppress(OSError, ValueError):  # of another user, or no directory of ours
        if (read_json(home / "manifest.json") or {}).get("run") == manifest["run"]:
            return home
    return None


def manifest_of(source: RemoteDirectory) -> dict[str, Any]:
    """Return a run's manifest as its source has it, nothing when it has none."""
    entry = next((one for one in source.call("files", timeout_s=20.0) if one["name"] == "manifest.json"), None)
    found = json.loads(source.call("read", "manifest.json", 0, entry["size"], timeout_s=20.0)) if entry else {}
    return found if isinstance(found, dict) else {}


def is_alive(manifest: Mapping[str, Any], now_wall_ns: int) -> bool:
    """Tell whether a manifest is that of a run that goes on."""
    return judge_status(manifest, {}, now_wall_ns)[0] == "running"


def fetch(source: RemoteDirectory, run_dir: Path, now_wall_ns: int) -> None:
    """Bring what a run's source holds and `run_dir` does not: closed files of a run that lives, else also the log.

    The verdict that stands in `run_dir` is not replaced by the word of a source that died without one. Raises `OSError`, `StressError`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if source.call("hello", timeout_s=20.0)["directory_identity"] == identity(run_dir):
        return
    theirs, ours = manifest_of(source), read_json(run_dir / "manifest.json") or {}
    ended_here = ours.get("status", "running") != "running"
    if is_alive(theirs, now_wall_ns) and not ended_here:
        mirror(source, run_dir)
        return
    left_out = {"manifest.json"} if ended_here and theirs.get("status") == "running" else set()
    for attempt in range(ATTEMPTS):
        try:
            names = _copy_all(source, run_dir, left_out)
        except (FileNotFoundError, InputError):
            if attempt == ATTEMPTS - 1:
                raise
        else:
            _remove_others(run_dir, names)
            return


def _copy_all(source: RemoteDirectory, run_dir: Path, left_out: set[str]) -> set[str]:
    """Copy the log before what it becomes, so that a record is here twice rather than not at all; readers count it once."""
    entries = {entry["name"]: entry["size"] for entry in source.call("files", timeout_s=20.0)}
    for name in sorted(entries.keys() - left_out, key=_turn):
        copy_file(source, run_dir, name, entries[name])
    return set(entries)


def _turn(name: str) -> int:
    return 2 + LAST.index(name) if name in LAST else int(not name.startswith("log/"))


def _remove_others(run_dir: Path, names: set[str]) -> None:
    for folder in OWNED:
        for path in (run_dir / folder).glob("*"):
            if f"{folder}{path.name}" not in names and path.is_file():
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # still in use, or none
        (run_dir / "log").rmdir()


def stored_runs(state_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield the runs whose directory lies in STATE of this machine."""
    for path in sorted((state_dir / "runs").glob("*/manifest.json")):
        yield path.parent.name, path.parent


def homes_of(state_dir: Path, out: Path) -> dict[str, Path]:
    """Return the run directories of this machine that drivers wrote: those in OUT, and those that runs in STATE name; never STATE's own."""
    homes = {name: home_of(read_json(path / "manifest.json") or {}) for name, path in stored_runs(state_dir)}
    homes |= {path.parent.name: path.parent for path in out.glob("*/manifest.json") if RUN_ID.fullmatch(path.parent.name)}
    return {name: home for name, home in homes.items() if home is not None and home != state_dir / "runs" / name}


def checked_run(run: str) -> str:
    """Return a run id that may be part of a path; raises `InputError` for anything else."""
    if not RUN_ID.fullmatch(run):
        raise InputError("not_found", f"{run!r} is no run id", "run ids look like 20260101-120000-burst-1a2b")
    return run
