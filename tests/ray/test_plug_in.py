"""A package of somebody else's on the nodes of a cluster: what it accumulates there is merged and asked here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.asked import RUN, make_run

from cluster.metrics.sketches import Accumulators, unpack

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-an-accumulator.md"


def install(folder: Path) -> None:
    """Install the package of the page as pip would: its module, and its metadata with the entry point."""
    code = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    project = tomllib.loads(code["pyproject.toml"])["project"]
    info = folder / f"slow_share-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (folder / "slow_share.py").write_text(code["slow_share.py"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_an_installed_accumulator_works_on_nodes_and_is_merged_and_asked_here(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers on two nodes find it by its entry point and accumulate; their bytes merge here; a run's windows answer with it too."""
    import ray

    site = tmp_path / "site"
    install(site)
    wanted = {name: driver.node_id(name) for name in ("n1", "n2")}
    samples = {"n1": [0.1, 0.7], "n2": [0.2, 0.9, 1.5]}

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"PYTHONPATH": f"{site}:{ROOT}"}})
    def accumulate(taken: list[float]) -> tuple[str, bytes]:
        from cluster.metrics.sketches import Accumulators, Batch

        known = Accumulators()
        known.load()
        record = known.find("slow_share")
        made = record.make()
        made.add(Batch.of(taken))
        return ray.get_runtime_context().get_node_id(), record.pack(made)

    calls = {name: accumulate.options(label_selector={"ray.io/node-id": node}).remote(samples[name]) for name, node in wanted.items()}
    found = {name: ray.get(call, timeout=60) for name, call in calls.items()}
    assert {name: node for name, (node, _) in found.items()} == wanted
    monkeypatch.syspath_prepend(str(site))
    known = Accumulators()
    assert known.load() == []
    record = known.find("slow_share")
    whole = record.make()
    for _, part in found.values():
        whole.merge(unpack(part, known)[1])
    assert {name: figure.value for name, figure in record.answers(whole).items()} == {"slow_share": 0.6, "count": 5}
    core = make_run(tmp_path / RUN, finish=False)
    words = {"metric": ("probe.response",), "accumulator": ("slow_share",), "by": ("node",)}
    rows = core.answers.ask(words)["rows"]
    assert [(row["by"]["node"], row["figures"]["count"]["value"]) for row in rows] == [("n1", 120), ("n2", 120)]
    core.close()
