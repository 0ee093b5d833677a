"""What is told of Ray's own settings: each node's, and never a token."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster import agent_shell
from cluster.agent_api import AgentConfig
from cluster.agent_shell import AgentShell
from cluster.cli.doctor import doctor_lines
from cluster.ray_facts import monitor_share, ray_facts


def test_defaults_are_rays_own_and_an_open_cluster_is_said_to_be_open() -> None:
    """Without any variable a node is dead after 65 s, and anyone who reaches the head may run code."""
    found = ray_facts({})
    assert found["declares_a_node_dead_after_s"] == 65.0
    assert found["RAY_AUTH_MODE"].startswith("not set: anyone")
    assert (found["RAY_health_check_period_ms"], found["RAY_health_check_failure_threshold"]) == ("3000", "5")


@pytest.mark.parametrize(
    ("threshold", "after_s"), [pytest.param("3", 6.0, id="as-set"), pytest.param("three", None, id="no-number-is-no-figure")]
)
def test_what_a_node_has_set_is_told_with_what_follows(threshold: str, after_s: float | None) -> None:
    """Names and values as they are; the figure follows from them."""
    environ = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": threshold}
    found = ray_facts(environ)
    assert {name: found[name] for name in environ} == environ
    assert found["declares_a_node_dead_after_s"] == after_s


def test_a_token_is_never_told() -> None:
    """Only the mode of authentication is told, whatever else stands in the environment."""
    secrets = {"RAY_AUTH_TOKEN": "s3cret", "RAY_AUTH_TOKEN_PATH": "/s3cret", "RAY_REDIS_PASSWORD": "s3cret"}
    assert "s3cret" not in json.dumps(ray_facts({"RAY_AUTH_MODE": "token", **secrets}))


def test_an_agent_reports_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that differ are told apart: each report holds the environment of the agent's own process, also in `doctor`'s lines."""
    monkeypatch.setattr(agent_shell, "machine_facts", dict)
    agent = object.__new__(AgentShell)
    agent.state_dir, agent._config = tmp_path, AgentConfig("n1", "c", 1)
    nodes = {}
    for name, mode in (("n1", "token"), ("n2", "")):
        monkeypatch.setenv("RAY_AUTH_MODE", mode) if mode else monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        nodes[name] = agent._node_report()
    assert nodes["n1"]["ray"]["RAY_AUTH_MODE"] == "token" != os.environ.get("RAY_AUTH_MODE")
    assert nodes["n2"]["ray"]["RAY_AUTH_MODE"].startswith("not set")
    lines = "\n".join(doctor_lines({"nodes": nodes}))
    first, second = lines.split("\nn2\n")
    assert "token" in first
    assert "not set: anyone" in second


@pytest.mark.parametrize(
    ("environ", "share"),
    [
        pytest.param({}, 0.95, id="rays-own"),
        pytest.param({"RAY_memory_usage_threshold": "0.8"}, 0.8, id="as-set"),
        pytest.param({"RAY_memory_monitor_refresh_ms": "0"}, 1.0, id="off"),
        pytest.param({"RAY_memory_usage_threshold": "much"}, 1.0, id="no-number"),
    ],
)
def test_the_share_above_which_ray_ends_workers(environ: dict[str, str], share: float) -> None:
    """As the environment says, and told."""
    assert monitor_share(environ) == share
    assert ray_facts(environ)["ends_workers_above_memory"] == share
