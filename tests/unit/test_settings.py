"""Settings: layers, origins, and messages that name what is wrong."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError
from cluster import settings as module
from cluster.driver_main import caps_of
from cluster.metrics.cardinality import Caps
from cluster.safety.profiles import PROFILES as LIMIT_PROFILES
from cluster.settings import FIELDS, PROFILES, Settings, flatten, from_dict, load, state_path
from scenarios import text


def resolved(tmp_path, flags=None, environ=None, toml=None, scenario=None):
    if toml is not None:
        (tmp_path / module.FILE_NAME).write_text(toml)
    return load(flags, environ={"HOME": str(tmp_path), **(environ or {})}, folder=tmp_path, scenario=scenario)


def refused(tmp_path, **layers):
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, **layers)
    assert caught.value.exit_code == 2
    return caught.value


def test_fields_describe_every_setting_and_nothing_else():
    """The table of fields and the settings value name the same leaves."""
    leaves = set()
    for key, value in dataclasses.asdict(Settings()).items():
        if key != "origins":
            leaves |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
    assert {one.path for one in FIELDS} == leaves


def test_profiles_are_those_of_the_limits():
    """A profile that settings accept has limits, and the other way round."""
    assert set(PROFILES) == set(LIMIT_PROFILES)


def test_defaults_are_within_their_own_bounds(tmp_path):
    """A default would be accepted if it were given."""
    for one in FIELDS:
        value = flatten(Settings())[one.path]
        assert value is None or resolved(tmp_path, flags={one.path: value})


def test_each_layer_beats_the_one_below_and_says_so(tmp_path):
    """default < profile < file < environment < scenario < flag, and the origin is the layer that won."""
    layers = {}
    seen = []
    for name, more, want in (
        ("default", {}, 2.0),
        ("file", {"toml": "stale_s = 3"}, 3.0),
        ("environment", {"environ": {"STRESS_CLUSTER_STALE_S": "4"}}, 4.0),
        ("scenario", {"scenario": {"stale_s": 5}}, 5.0),
        ("flag", {"flags": {"stale_s": 6}}, 6.0),
    ):
        layers |= more
        found = resolved(tmp_path, **layers)
        assert found.stale_s == want, name
        seen.append(found.origins["stale_s"].split()[0])
    assert seen == ["profile", "file", "environment", "scenario", "flag"]


def test_origin_names_file_and_variable(tmp_path):
    """Whoever reads an origin can go there and change it."""
    found = resolved(tmp_path, toml="[budget]\nmax_nodes = 3", environ={"STRESS_CLUSTER_PROMETHEUS__PORT": "9464"})
    assert found.origins["budget.max_nodes"] == f"file {tmp_path / module.FILE_NAME}"
    assert found.origins["prometheus.port"] == "environment STRESS_CLUSTER_PROMETHEUS__PORT"
    assert (found.budget.max_nodes, found.prometheus.port) == (3, 9464)


@pytest.mark.parametrize(
    ("path", "text", "want"),
    [
        pytest.param("lease_s", "2", 2.0, id="plain-number-is-seconds"),
        pytest.param("lease_s", "1500ms", 1.5, id="milliseconds"),
        pytest.param("budget.max_duration_s", "2m", 120.0, id="minutes"),
        pytest.param("budget.max_duration_s", "none", None, id="none-lifts-a-bound"),
        pytest.param("budget.disk_bytes", "512MiB", 512 << 20, id="size"),
        pytest.param("lease_s", "1", 1.0, id="at-the-floor"),
        pytest.param("lease_s", "60", 60.0, id="at-the-ceiling"),
    ],
)
def test_environment_values_are_read_with_units(tmp_path, path, text, want):
    """A variable takes plain numbers, units, and none where there may be no bound."""
    variable = next(one.variable for one in FIELDS if one.path == path)
    assert flatten(resolved(tmp_path, environ={variable: text}))[path] == want


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        pytest.param("STRESS_CLUSTER_LEASE_S", "0.9", id="under-the-floor"),
        pytest.param("STRESS_CLUSTER_LEASE_S", "61", id="over-the-ceiling"),
        pytest.param("STRESS_CLUSTER_LEASE_S", "nan", id="not-a-number"),
        pytest.param("STRESS_CLUSTER_LEASE_S", "-5", id="negative"),
        pytest.param("STRESS_CLUSTER_LEASE_S", "5MiB", id="size-for-a-duration"),
        pytest.param("STRESS_CLUSTER_BUDGET__CPU_FRACTION", "1.01", id="101-percent"),
        pytest.param("STRESS_CLUSTER_BUDGET__MAX_NODES", "2.5", id="half-a-node"),
        pytest.param("STRESS_CLUSTER_BUDGET__DISK_BYTES", "5s", id="duration-for-a-size"),
        pytest.param("STRESS_CLUSTER_PROFILE", "brave", id="unknown-profile"),
        pytest.param("STRESS_CLUSTER_LEASE_S", "", id="empty-where-a-value-must-be"),
    ],
)
def test_bad_variable_is_named_with_what_was_expected(tmp_path, variable, text):
    """A bad environment value is an input error that names the variable and what it must be."""
    error = refused(tmp_path, environ={variable: text})
    assert error.code == "invalid_setting"
    assert variable in error.message
    assert "must be" in error.message


def test_unknown_keys_offer_the_nearest_name(tmp_path):
    """A slip of the pen in a file, variable or flag is answered with what was meant."""
    assert "budget.max_nodes" in refused(tmp_path, toml="[budget]\nmax_node = 3").hint
    (tmp_path / module.FILE_NAME).unlink()
    error = refused(tmp_path, environ={"STRESS_CLUSTER_LEASE": "3"})
    assert "STRESS_CLUSTER_LEASE_S" in error.hint
    assert "STRESS_CLUSTER_LEASE" in error.message
    assert "lease_s" in refused(tmp_path, flags={"leases": 3}).hint


@pytest.mark.parametrize("variable", ["STRESS_CLUSTER_SERVICE_HOST", "STRESS_CLUSTER_PORT", "STRESS_CLUSTER_PORT_8265_TCP_ADDR"])
def test_kubernetes_service_links_are_no_settings(tmp_path, variable):
    """A Kubernetes service called stress-cluster does not break the start of its own pods."""
    assert resolved(tmp_path, environ={variable: "tcp://10.0.0.1:8265"}).lease_s == 5.0


def test_missing_and_broken_files_are_told(tmp_path):
    """A file that was named must be there, and must be TOML."""
    with pytest.raises(InputError, match="does not exist") as caught:
        load(config=tmp_path / "none.toml", environ={}, folder=tmp_path)
    assert caught.value.code == "not_found"
    assert "line 1" in refused(tmp_path, toml="lease_s = = 5").message


def test_short_lease_takes_its_renewal_along(tmp_path):
    """A lease of 2 s is renewed four times in its length unless somebody says otherwise."""
    found = resolved(tmp_path, flags={"lease_s": 2})
    assert (found.renew_s, found.origins["renew_s"]) == (0.5, "a quarter of lease_s")
    assert resolved(tmp_path, flags={"lease_s": 2, "renew_s": 1}).renew_s == 1.0
    assert "renew_s" in refused(tmp_path, flags={"lease_s": 2, "renew_s": 1.1}).message


def test_state_folder_is_resolved_once(tmp_path):
    """The setting wins, and settings that cross to a child carry the folder that was meant."""
    found = resolved(tmp_path, environ={"STRESS_CLUSTER_STATE_DIR": str(tmp_path / "state")})
    assert state_path(found) == tmp_path / "state"
    assert state_path(from_dict(json.loads(json.dumps(dataclasses.asdict(found))))) == tmp_path / "state"


@given(
    lease_s=st.floats(1, 60),
    max_nodes=st.none() | st.integers(1, 10_000),
    profile=st.sampled_from(PROFILES),
    port=st.none() | st.integers(0, 65_535),
)
def test_settings_survive_json(lease_s, max_nodes, profile, port):
    """What a child process is handed as JSON is the same value with the same origins."""
    flags = {"lease_s": lease_s, "budget.max_nodes": max_nodes, "profile": profile, "prometheus.port": port, "state_dir": "/s"}
    found = load(flags, environ={})
    again = from_dict(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found
    assert again.origins == found.origins
    assert again.to_json() == found.to_json()


def test_given_is_what_a_person_set(tmp_path):
    """Only what a file, variable or flag said travels to where settings are resolved again."""
    found = resolved(tmp_path, flags={"lease_s": 2}, environ={"STRESS_CLUSTER_SAMPLE_HZ": "5"}, scenario={"profile": "aggressive"})
    assert [(one.path, value) for one, value in found.given()] == [("lease_s", 2.0), ("sample_hz", 5.0)]


@pytest.mark.parametrize(
    ("flags", "told", "hint"),
    [
        pytest.param(
            {"tls_cert": "/c.pem"}, "prometheus.tls_cert is '/c.pem' (flag), and prometheus.tls_key is not set", "both", id="no-key"
        ),
        pytest.param(
            {"tls_key": "/c.key"}, "prometheus.tls_key is '/c.key' (flag), and prometheus.tls_cert is not set", "both", id="no-cert"
        ),
        pytest.param(
            {"tls_cert": "c.pem", "tls_key": "/c.key"},
            "prometheus.tls_cert is 'c.pem' (flag), which is no absolute path",
            "node",
            id="relative",
        ),
        pytest.param({"auth_file": "/a", "host": "0.0.0.0"}, "in the open from 0.0.0.0", "127.0.0.1", id="passwords-in-the-open"),
        pytest.param({"buckets": "probe.response=2,1"}, "do not ascend (flag)", "METRIC=BOUND", id="buckets"),
        pytest.param({"max_series": 0}, "flag prometheus.max_series is 0", "hidden", id="no-series"),
        pytest.param({"max_scrapes": 0}, "flag prometheus.max_scrapes is 0", "come again", id="no-scrapes"),
    ],
)
def test_bad_settings_of_the_endpoint_are_refused_with_their_place(tmp_path, flags, told, hint):
    """What cannot work is refused before a run, with where it was said and what to do."""
    error = refused(tmp_path, flags={f"prometheus.{name}": value for name, value in flags.items()})
    assert (error.code, told in error.message, hint in error.hint) == ("invalid_setting", True, True)


def test_settings_of_the_endpoint_come_from_variables(tmp_path):
    """TLS, credentials and buckets have variables like any other setting, and with TLS a password may cross the network."""
    names = {"TLS_CERT": "/c.pem", "TLS_KEY": "/c.key", "AUTH_FILE": "/a.toml", "HOST": "0.0.0.0", "BUCKETS": "probe.response=0.5,1"}
    found = resolved(tmp_path, environ={f"STRESS_CLUSTER_PROMETHEUS__{name}": value for name, value in names.items()}).prometheus
    assert (found.tls_cert, found.tls_key, found.auth_file, found.host, found.buckets) == tuple(names.values())


SCENARIO = """version: 1
name: x
{metrics}
plan: {{CpuLoad: {{fraction: 10%}}, for: 5s}}
"""


@pytest.mark.parametrize(
    ("document", "layers", "want"),
    [
        pytest.param("", {}, "normal", id="nothing-said"),
        pytest.param("", {"toml": "[metrics]\nlevel = 'minimal'"}, "minimal", id="file"),
        pytest.param("", {"environ": {"STRESS_CLUSTER_METRICS__LEVEL": "verbose"}}, "verbose", id="environment"),
        pytest.param("metrics: {level: minimal}", {"environ": {"STRESS_CLUSTER_METRICS__LEVEL": "verbose"}}, "minimal", id="scenario"),
        pytest.param("metrics: {level: minimal}", {"flags": {"metrics.level": "verbose"}}, "verbose", id="flag"),
        pytest.param("metrics: {level: normal}", {"flags": {"metrics.level": None}}, "normal", id="no-flag"),
    ],
)
def test_the_level_of_a_run_is_settable_by_file_environment_scenario_and_flag(tmp_path, document, layers, want):
    """The layers have their usual order, and the scenario that is submitted says the level that won."""
    scenario = text.load(SCENARIO.format(metrics=document))
    found = module.recorded(scenario, resolved(tmp_path, scenario=module.said_by(scenario), **layers))
    assert found.metrics.level == want
    assert dataclasses.replace(found, metrics=scenario.metrics) == scenario


def test_a_level_that_would_blind_a_hypothesis_is_refused(tmp_path):
    """As in the document itself: it would be unknown at the end, after all the load."""
    scenario = text.load(SCENARIO.format(metrics="hypotheses: [{threshold: {metric: host.cpu.busy, stat: max, op: <, value: 1}}]"))
    minimal = resolved(tmp_path, environ={"STRESS_CLUSTER_METRICS__LEVEL": "minimal"})
    with pytest.raises(InputError, match=r"needs host\.cpu\.busy, which metrics\.level minimal leaves out"):
        module.recorded(scenario, minimal)


def test_series_caps_are_settings_of_a_run(tmp_path):
    """What is set goes with the submission as the caps of each node's streams; what is not is the caps' own default."""
    assert Caps(**caps_of(resolved(tmp_path))) == Caps()
    toml = "[metrics]\nmax_series = 7\nmax_series_by_metric = 5\nmax_label_values = 3\nidle_s = '2m'"
    assert Caps(**caps_of(resolved(tmp_path, toml=toml))) == Caps(7, 5, 3, 120.0)
    assert "metrics.max_series" in refused(tmp_path, environ={"STRESS_CLUSTER_METRICS__MAX_SERIES": "0"}).message
