"""One frozen settings value, and where each of its parts came from.

    default < profile < file < environment < scenario < flag

Read once at the edge and passed in; nothing else reads a configuration file or a `STRESS_CLUSTER_*` variable for a setting.
A file is TOML: `stress-cluster.toml` in the current folder, or the one named by `--config`. A variable is
`STRESS_CLUSTER_<FIELD>`, with `__` between levels: `STRESS_CLUSTER_BUDGET__MAX_NODES=3`. An unknown key is an error that
offers the nearest name. Durations and sizes take units in text ("30s", "512MiB").
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from actors.errors import InputError
from actors.state import default_state_dir
from scenarios.model import Scenario
from scenarios.recording import METRIC_LEVELS, Metrics
from scenarios.units import parse_duration, parse_size

ENV_PREFIX: Final = "STRESS_CLUSTER_"
FILE_NAME: Final = "stress-cluster.toml"
PROFILES: Final = ("conservative", "balanced", "aggressive")

# Kubernetes puts such variables into every pod when a service is called stress-cluster; they are not settings.
_SERVICE_LINK: Final = re.compile(r"STRESS_CLUSTER_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Kind = Literal["text", "seconds", "bytes", "number", "whole", "choice"]


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What all concurrent runs of a cluster together may take; None is no bound."""

    max_nodes: int | None = None
    cpu_fraction: float = 1.0
    memory_fraction: float = 1.0
    disk_bytes: int | None = None
    max_duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """Where and how a run's aggregator serves its metrics; no port is no server. Paths are on the node of the aggregator."""

    port: int | None = None
    host: str = "127.0.0.1"
    tls_cert: str = ""
    tls_key: str = ""
    auth_file: str = ""
    buckets: str = ""
    max_series: int = 100_000
    max_scrapes: int = 8
    idle_s: float = 86_400.0
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """How much a run records, in how many series and in which windows, how long these stay (None is for ever), and who looks at them."""

    level: str | None = None
    window_s: float = 1.0
    max_series: int = 10_000
    max_series_by_metric: int = 10_000
    max_label_values: int = 5_000
    idle_s: float = 3_600.0
    fine_for_s: float | None = 86_400.0
    medium_for_s: float | None = 604_800.0
    anomaly: str = ""
    anomaly_window_s: float = 10.0


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """How much of a run's metrics a node keeps on disk while nobody takes them."""

    max_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. `FIELDS` gives each part's unit, bounds and meaning; `origins` by path the layer it came from."""

    state_dir: str = ""
    out: str = "runs"
    profile: str = "balanced"
    ship: str = "always"
    lease_s: float = 5.0
    renew_s: float = 1.0
    sample_hz: float = 10.0
    stale_s: float = 2.0
    prepare_timeout_s: float = 60.0
    stop_grace_s: float = 2.0
    idle_exit_s: float = 60.0
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return {path: {"value", "origin"}}: what `config show` prints and a manifest keeps."""
        return {path: {"value": value, "origin": self.origins.get(path, "default")} for path, value in flatten(self).items()}

    def given(self) -> list[tuple[Field, Any]]:
        """Return what a person set by file, environment or flag: what must travel to where settings are resolved again."""
        values = flatten(self)
        return [
            (one, values[one.path]) for one in FIELDS if self.origins.get(one.path, "").split(" ")[0] in {"file", "environment", "flag"}
        ]


@dataclass(frozen=True, slots=True)
class Field:
    """One setting: its dotted path, how it is read, its bounds (both included), and what it does."""

    path: str
    kind: Kind
    help: str
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """Return the name of the environment variable that sets this field."""
        return ENV_PREFIX + self.path.replace(".", "__").upper()

    @property
    def expected(self) -> str:
        """Return what a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices) + (", or none" if self.optional else "")
        nouns = {"text": "a text", "seconds": "a duration (5, 5s, 2m)", "bytes": "a size (1024, 512MiB)"}
        noun = nouns.get(self.kind, "a whole number" if self.kind == "whole" else "a number")
        if self.kind == "text":
            return noun
        low = "" if math.isinf(self.low) else f" of at least {self.low:g}"
        high = "" if math.isinf(self.high) else f"{' and' if low else ' of'} at most {self.high:g}"
        return f"{noun}{low}{high}{', or none' if self.optional else ''}"


FIELDS: Final[tuple[Field, ...]] = (
    Field("state_dir", "text", "STATE: undo journal, halt bit, reservations, outbox; empty is the default of this user"),
    Field("out", "text", "folder that run directories are written to"),
    Field("profile", "choice", "safety profile: the limits on each node (`list limits`)", choices=PROFILES),
    Field(
        "ship",
        "choice",
        "send this code to a cluster's nodes: always, or never where each node has this very version installed (runs begin sooner there)",
        choices=("always", "never"),
    ),
    Field("lease_s", "seconds", "a load ends by itself when its lease was not renewed for this long", 1, 60),
    Field("renew_s", "seconds", "how often leases are renewed; at most half of lease_s", 0.1, 30),
    Field("sample_hz", "number", "host samples a second on each node", 1, 100),
    Field("stale_s", "seconds", "a host snapshot older than this ends the node's load", 0.2, 60),
    Field("prepare_timeout_s", "seconds", "how long all nodes together may take to get ready", 1, 3600),
    Field("stop_grace_s", "seconds", "how long a load may take to stop by itself before it is killed", 0, 60),
    Field("idle_exit_s", "seconds", "the orchestrator of a cluster ends this long after its last run", 0, 86400),
    Field("budget.max_nodes", "whole", "nodes that may carry load at once", 1, optional=True),
    Field("budget.cpu_fraction", "number", "share of the target nodes' cores that may be asked for", 0, 1),
    Field("budget.memory_fraction", "number", "share of the target nodes' memory that may be asked for", 0, 1),
    Field("budget.disk_bytes", "bytes", "bytes on disk that may be filled at once", 0, optional=True),
    Field("budget.max_duration_s", "seconds", "longest run that is admitted", 0, optional=True),
    Field("prometheus.port", "whole", "port of the run's metrics endpoint; none is no endpoint, 0 any free port", 0, 65535, optional=True),
    Field("prometheus.host", "text", "address that the endpoint listens on"),
    Field(
        "prometheus.tls_cert", "text", "PEM file with the endpoint's certificate and its chain, on the aggregator's node; empty is no TLS"
    ),
    Field("prometheus.tls_key", "text", "PEM file with the certificate's key"),
    Field("prometheus.auth_file", "text", "TOML file with users and tokens that may read, hashed; empty lets everybody"),
    Field("prometheus.buckets", "text", "bounds of histograms by metric: probe.response=0.005,0.01,0.1; load.slice=0.001,0.01"),
    Field("prometheus.max_series", "whole", "series (lines of a page) that are shown; what passes it is hidden and counted", 1, 10_000_000),
    Field("prometheus.max_scrapes", "whole", "requests that are answered at once; one more is told to come again", 1, 1000),
    Field("prometheus.idle_s", "seconds", "counters and histograms not seen for this long are hidden until they come back", 1, 86400),
    Field("prometheus.timeout_s", "seconds", "how long a client may take to send its request, and to take the answer", 0.1, 300),
    Field(
        "metrics.level",
        "choice",
        "how much a run records whose scenario says nothing else than normal; none is normal",
        optional=True,
        choices=METRIC_LEVELS,
    ),
    Field("metrics.window_s", "seconds", "length of a metrics window", 0.1, 60),
    Field("metrics.max_series", "whole", "series of a run on each node; what passes it goes into one series of its metric", 1, 10_000_000),
    Field("metrics.max_series_by_metric", "whole", "the same for one metric", 1, 10_000_000),
    Field("metrics.max_label_values", "whole", "values of one label of a metric, on each node; the same", 1, 10_000_000),
    Field("metrics.idle_s", "seconds", "a series that gets no value for this long is forgotten on its node and makes room", 1, 604_800),
    Field(
        "metrics.fine_for_s",
        "seconds",
        "how long windows stay as they came; then, in a run that still goes on, they become windows of 10 s; none keeps them",
        120,
        optional=True,
    ),
    Field(
        "metrics.medium_for_s",
        "seconds",
        "how long windows of 10 s stay so; then they become windows of 60 s; none keeps them",
        120,
        optional=True,
    ),
    Field("metrics.anomaly", "text", "anomaly hooks on the aggregator's node: robust_z, ewma, leak, or a package's; empty is none"),
    Field("metrics.anomaly_window_s", "seconds", "length of the windows that anomaly hooks look at", 1, 3600),
    Field(
        "outbox.max_bytes", "bytes", "bytes of undelivered metrics kept per run and node; what passes it is dropped and counted", 1 << 20
    ),
)
_BY_PATH: Final = {one.path: one for one in FIELDS}


def said_by(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario's layer: what the document itself says of settings; None where it says nothing."""
    level = scenario.metrics.level
    said: dict[str, Any] = {
        "profile": scenario.profile,
        "stale_s": scenario.limits.stale_s,
        "metrics.level": level if level != Metrics().level else None,
    }
    if scenario.exporters.prometheus is not None:
        said |= {"prometheus.port": scenario.exporters.prometheus.port, "prometheus.host": scenario.exporters.prometheus.host}
    return said


def recorded(scenario: Scenario, settings: Settings) -> Scenario:
    """Return the scenario at the level of the settings. Raises `InputError` where that leaves a hypothesis without its metric."""
    level = settings.metrics.level
    return scenario if level is None else replace(scenario, metrics=replace(scenario.metrics, level=level))


def flatten(settings: Settings) -> dict[str, Any]:
    """Return {dotted path: value} in the order of `FIELDS`."""
    return {one.path: operator.attrgetter(one.path)(settings) for one in FIELDS}


def from_dict(nested: Mapping[str, Any]) -> Settings:
    """Return the settings that `dataclasses.asdict` gave, also after JSON. Raises `InputError` on unknown paths and bad values."""
    flat = _flat_keys({key: value for key, value in nested.items() if key != "origins"})
    values = {path: _read(_field(path, "settings"), value, "settings", path) for path, value in flat.items()}
    return _build({**flatten(Settings()), **values}, dict(nested.get("origins") or {}))


def state_path(settings: Settings) -> Path:
    """Return STATE: the setting, else this user's default. The folder may not exist yet."""
    return Path(settings.state_dir) if settings.state_dir else default_state_dir(os.environ, os.geteuid())


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    scenario: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    folder: Path | None = None,
) -> Settings:
    """Resolve all layers.

    `flags` and `scenario` (what the document itself says) map dotted paths to values, where None means "not given".
    Raises `InputError` (exit code 2) that names the file, variable, document or flag with the bad value.
    """
    environ = os.environ if environ is None else environ
    upper = [
        _file_layer(config, folder or Path.cwd()),
        _environment_layer(environ),
        _given_layer("scenario", scenario or {}),
        _given_layer("flag", flags or {}),
    ]
    values, origins = _merge([_defaults(), *upper])
    profile = values["profile"]
    values, origins = _merge([_defaults(), _profile_layer(profile), *upper])
    _derive(values, origins)
    _check_prometheus(values, origins)
    if not values["state_dir"]:
        values["state_dir"] = str(default_state_dir(environ, os.geteuid()))
    return _build(values, origins)


Layer = tuple[dict[str, Any], dict[str, str]]


def _defaults() -> Layer:
    values = flatten(Settings())
    return values, dict.fromkeys(values, "default")


def _merge(layers: Iterable[Layer]) -> Layer:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer_values, layer_origins in layers:
        values.update(layer_values)
        origins.update(layer_origins)
    return values, origins


def _profile_layer(profile: str) -> Layer:
    """Return the settings that a profile has a say in; its limits per node are `safety.profiles` and no settings."""
    from .safety.profiles import limits_for  # noqa: PLC0415  # the limits' own checks import more than a setting needs

    return {"stale_s": limits_for(profile).stale_s}, {"stale_s": f"profile {profile}"}


def _given_layer(origin: str, given: Mapping[str, Any]) -> Layer:
    values = {path: _read(_field(path, origin), value, origin, path) for path, value in given.items() if value is not None}
    return values, dict.fromkeys(values, origin)


def _file_layer(config: Path | None, folder: Path) -> Layer:
    path = config or folder / FILE_NAME
    if config is None and not path.is_file():
        return {}, {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("not_found", f"the settings file {path} does not exist", "check the path given to --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("invalid_setting", f"the settings file {path} cannot be read: {error}", "it must be TOML") from error
    flat = _flat_keys(document)
    values = {key: _read(_field(key, str(path)), value, str(path), key) for key, value in flat.items()}
    return values, dict.fromkeys(values, f"file {path}")


def _flat_keys(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat_keys(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or _SERVICE_LINK.fullmatch(variable):
            continue
        path = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if path not in _BY_PATH:
            names = [one.variable for one in FIELDS]
            raise InputError("invalid_setting", f"the environment variable {variable} sets nothing that is known", nearest(variable, names))
        values[path] = _read(_BY_PATH[path], text, "the environment variable", variable)
        origins[path] = f"environment {variable}"
    return values, origins


def _field(path: str, where: str) -> Field:
    if path not in _BY_PATH:
        raise InputError("unknown_key", f"{where}: unknown setting {path!r}", nearest(path, _BY_PATH))
    return _BY_PATH[path]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that offers the nearest known name, or all of them."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else "known are " + ", ".join(names)


def _read(one: Field, value: Any, where: str, name: str) -> Any:
    """Return the value in the field's type and unit. Raises `InputError` that names where it was given."""
    if value is None or (isinstance(value, str) and one.optional and value.strip().lower() in {"none", ""}):
        if one.optional:
            return None
    else:
        try:
            read = _READERS[one.kind](value)
        except (ValueError, InputError):
            read = None
        if read is not None and (one.kind == "text" or _allowed(one, read)):
            return read
    raise InputError("invalid_setting", f"{where} {name} is {value!r}, but {one.path} must be {one.expected}", f"{one.path}: {one.help}")


def _allowed(one: Field, read: Any) -> bool:
    return read in one.choices if one.choices else one.low <= read <= one.high


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004  # every reader answers a bad value alike
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004  # every reader answers a bad value alike
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _with_unit(value: Any, parse: Callable[[str], float]) -> float:
    """Return a number as it is, and a text with a unit ("30s", "512MiB") by its parser."""
    return parse(value.strip()) if isinstance(value, str) and value.strip()[-1:].isalpha() else _number(value)


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "text": _text,
    "choice": _text,
    "number": _number,
    "whole": _whole,
    "seconds": lambda value: _with_unit(value, parse_duration),
    "bytes": lambda value: _whole(_with_unit(value, parse_size)),
}


def _derive(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Fit an unset `renew_s` to a short lease, and refuse one that leaves no second chance."""
    lease_s = values["lease_s"]
    if origins["renew_s"] == "default" and values["renew_s"] > lease_s / 4:
        values["renew_s"], origins["renew_s"] = lease_s / 4, "a quarter of lease_s"
    if values["renew_s"] > lease_s / 2:
        raise InputError(
            "invalid_setting",
            f"renew_s is {values['renew_s']:g} s ({origins['renew_s']}), lease_s is {lease_s:g} s ({origins['lease_s']})",
            "renew_s must be at most half of lease_s, or one late renewal ends the load",
        )


def _check_prometheus(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse a half of TLS, paths that depend on where one stands, passwords in the open, and buckets that are none."""

    def unfit(name: str, what: str, hint: str) -> InputError:
        path = f"prometheus.{name}"
        return InputError("invalid_setting", f"{path} is {values[path]!r} ({origins[path]}), {what}", hint)

    for name in ("tls_cert", "tls_key", "auth_file"):
        if (path := values[f"prometheus.{name}"]) and not Path(path).is_absolute():
            raise unfit(name, "which is no absolute path", "the aggregator reads it on its own node, in a folder of its own")
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if values[f"prometheus.{name}"] and not values[f"prometheus.{other}"]:
            raise unfit(name, f"and prometheus.{other} is not set", "TLS needs both a certificate and its key")
    in_the_open = values["prometheus.host"] not in _LOOPBACK and not values["prometheus.tls_cert"]
    if values["prometheus.auth_file"] and in_the_open:
        where = f"and passwords would cross the network in the open from {values['prometheus.host']}"
        raise unfit("auth_file", where, "set prometheus.tls_cert and prometheus.tls_key, or serve on 127.0.0.1")
    if values["prometheus.buckets"]:
        from .metrics.buckets import parse  # noqa: PLC0415  # loads numpy, which few settings need

        try:
            parse(values["prometheus.buckets"])
        except InputError as error:
            raise InputError(error.code, f"{error.message} ({origins['prometheus.buckets']})", error.hint) from None


def _build(values: Mapping[str, Any], origins: dict[str, str]) -> Settings:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        group, _, leaf = path.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    parts = {"budget": BudgetSettings, "prometheus": PrometheusSettings, "metrics": MetricsSettings, "outbox": OutboxSettings}
    for group, kind in parts.items():
        nested[group] = kind(**nested.get(group, {}))
    return Settings(**nested, origins=origins)


def reference_rows() -> list[tuple[str, str, str, str, str]]:
    """Return (path, default, expected, variable, help) for each setting: the reference page is made of them."""
    defaults = flatten(Settings())
    return [(one.path, _shown(defaults[one.path]), one.expected, one.variable, one.help) for one in FIELDS]


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'
