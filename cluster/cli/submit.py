"""`submit`: the same scenario as a Ray job; follows its log, passes stop on, and returns the run's own exit code."""

from __future__ import annotations

import shlex
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from actors.errors import HarnessError, InputError
from actors.origin import PACKAGES, code_id

from . import options, ports, source
from .follow import handling
from .output import print_json, put, say

STOP_WAIT_S: Final = 60  # Ray's own patience with a driver that stops is 3 s, too short to undo and to deliver
FILE_NAME: Final = "scenario.yaml"
_CODES: Final = {"STOPPED": 130, "SUCCEEDED": 0}


def submit(
    scenario: options.Scenario,
    *,
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="The head's dashboard, http://HEAD:8265."),
    ] = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    export: options.Exports = None,
    profile: options.Profile = None,
    timeout: Annotated[str | None, typer.Option("--timeout", help="End the run after this long, such as 90s or 5m: exit code 7.")] = None,
    allow_head: options.AllowHead = False,
    allow_starve: options.AllowStarve = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Run a scenario as a Ray job, follow its log, and return its exit code. Ctrl-C stops the job and undoes the load.

    The nodes need Ray, not this package: its code travels with the job. The run directory stays in the state folder of
    the job's node.

    Examples:
      stress-cluster submit burst --address http://head:8265
      stress-cluster submit mine.yaml --set seed=7 --address http://head:8265
    """
    if not address or not address.startswith(("http://", "https://")):
        raise InputError("invalid_value", f"submit needs the head's dashboard, got {address!r}", "give --address http://HEAD:8265")
    source.duration(timeout, "--timeout")
    loaded = source.load(scenario, sets or [], seed, config, exports=export or ())
    if loaded.replay_of:
        raise InputError("invalid_value", "a replay cannot be submitted: its run directory is here", "use `run replay:... --address`")
    settings = source.resolve_settings(loaded, config, profile=profile)
    flags = {"--profile": settings.profile, "--seed": loaded.seed, "--timeout": timeout}
    switches = [name for name, on in (("--allow-head", allow_head), ("--allow-starve", allow_starve)) if on]
    environment = {one.variable: str(value) for one, value in settings.given() if one.path not in {"state_dir", "out", "profile"}}
    with tempfile.TemporaryDirectory(prefix="stress-cluster-job-") as folder:
        (Path(folder) / FILE_NAME).write_text(loaded.text, encoding="utf-8")
        job = ports.submit_job(address, entrypoint(flags, switches), runtime_env(folder, environment), {"stress_cluster": code_id()})
    return _follow(job, as_json)


def entrypoint(flags: Mapping[str, Any], switches: list[str]) -> str:
    """Return the job's command line. The module, not the script: the nodes need not have the package installed."""
    given = [text for name, value in flags.items() if value is not None for text in (name, str(value))]
    return shlex.join(["python", "-m", "cluster.cli", "run", FILE_NAME, "--yes", *given, *switches])


def runtime_env(folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what travels with the job: the scenario as its working directory, and our three packages by path."""
    import importlib  # noqa: PLC0415  # finds the packages' folders without a list of paths

    modules = [str(Path(str(importlib.import_module(name).__file__)).parent) for name in PACKAGES]
    return {
        "working_dir": folder,
        "py_modules": modules,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **environment},
    }


def _follow(job: ports.Job, as_json: bool) -> int:
    say(f"job        {job.id}\nto stop    Ctrl-C, or `ray job stop {job.id}`")
    stopping: list[threading.Thread] = []

    def stop(number: int, frame: object) -> None:  # noqa: ARG001  # the form of a signal handler
        if not stopping:  # in a thread: this one waits inside the log stream
            stopping.append(threading.Thread(target=job.stop, daemon=True))
            stopping[0].start()

    with handling(stop):
        for chunk in job.logs():
            say(chunk.rstrip("\n"))
        for thread in stopping:
            thread.join(STOP_WAIT_S)
        word, code = job.status()
    result = job_exit_code(word, code)
    if as_json:
        print_json({"job": job.id, "job_status": word, "exit_code": result})
    else:
        put(f"job {job.id}: {word.lower()}, exit code {result}\n")
    return result


def job_exit_code(word: str, code: int | None) -> int:
    """Return the run's own exit code: the driver's (3 when a signal ended it), else 130 for a stopped job and 0 for a success.

    Raises `HarnessError` for a job that failed before its driver could say anything.
    """
    if code is not None:
        return code if code >= 0 else 3
    if word in _CODES:
        return _CODES[word]
    raise HarnessError("lost", f"the job ended as {word} without an exit code", "see the job's log, and `stress-cluster status --address`")
