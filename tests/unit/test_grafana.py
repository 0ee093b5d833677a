"""The dashboard in deploy/grafana: made from the catalogue, asks only for what is documented, and loads where its files say."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from actors.metrics.registry import CATALOGUE, CONTEXT, Kind
from actors.simulator import REGISTRY
from cluster.exporters import grafana
from cluster.exporters.prometheus import OWN

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana"
FILE = FOLDER / "dashboards" / "stress-cluster.json"
DASHBOARD = json.loads(FILE.read_text())
GRAPHS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in GRAPHS for target in panel["targets"]]
METRICS = (*CATALOGUE.values(), *OWN.values())
WORDS = {"by", "le", "run", "node"}


def names_at_the_endpoint() -> dict[str, set[str]]:
    """Return every name that a page may have, with its labels."""
    found = {}
    for metric in METRICS:
        for unit in ("", *metric.other_units):
            family, labels = metric.family(unit), {*CONTEXT, *metric.labels}
            ends = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
            found |= {f"{family}{end}": labels | ({"le"} if end == "_bucket" else set()) for end in ends}
    return found


NAMES = names_at_the_endpoint()


def wrong_in(expr: str, legend: str = "") -> list[str]:
    """Return what a query asks for that no page has: a name, a suffix, a label; or a rate of what is no counter."""
    names = re.findall(r"stress_cluster_[a-z0-9_]+", expr)
    wrong = [name for name in names if name not in NAMES] or ([] if names else ["no metric"])
    for name, inner in re.findall(r"(stress_cluster_[a-z0-9_]+)\{([^}]*)\}", expr):
        wrong += [f"{name}{{{label}}}" for label in re.findall(r"([a-z_]+)\s*=", inner) if label not in NAMES.get(name, ())]
    every = set().union(*(NAMES.get(name, set()) for name in names))
    for inner in re.findall(r"by \(([^)]*)\)", expr):
        wrong += [f"by {label}" for label in re.split(r",\s*", inner) if label not in every]
    wrong += [f"legend {label}" for label in re.findall(r"\{\{(\w+)\}\}", legend) if label not in every]
    wrong += [f"rate of {name}" for name in re.findall(r"rate\((\w+)", expr) if not name.endswith(("_total", "_bucket"))]
    once = any(record.name in expr for record in REGISTRY.values() if record.family in grafana.ONCE)
    bare = [] if once else re.findall(r"quantile\([^(]*\([^(]*\((stress_cluster_\w+)", expr)
    return wrong + [f"no rate of {name}" for name in bare]


def test_the_file_is_what_the_code_makes():
    """`make dashboards` was run after the last change of catalogue, records or rows."""
    assert FILE.read_text() == grafana.text(), "make dashboards"


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=itertools.count())
def test_every_query_names_documented_metrics_and_their_labels(title, target):
    """Each name has the suffix of its kind and unit, each label is the metric's, and the reference page documents it."""
    assert not wrong_in(target["expr"], target["legendFormat"]), title
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name in re.findall(r"stress_cluster_[a-z0-9_]+", target["expr"]):
        assert f"`{name.removesuffix('_bucket')}`" in page, (title, name)


@pytest.mark.parametrize(
    "expr",
    [
        "stress_cluster_host_cpu_bussy_ratio",
        "stress_cluster_host_cpu_busy",
        "rate(stress_cluster_load_operations[1m])",
        "rate(stress_cluster_host_cpu_busy_ratio[1m])",
        'stress_cluster_host_cpu_busy_ratio{host="a"}',
        "sum by (errno) (stress_cluster_host_cpu_busy_ratio)",
        "histogram_quantile(0.9, sum by (le) (stress_cluster_load_slice_seconds_bucket))",
        "up",
    ],
)
def test_the_lint_finds_what_is_wrong(expr):
    """A wrong name, suffix, label, grouping or rate is found: the lint above can fail."""
    assert wrong_in(expr)


def test_variables_ask_for_documented_metrics():
    """`$run` and `$node` are read from series that every run has, and every query that has a run is bound to it."""
    queries = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    assert [re.search(r", (\w+)\)$", one)[1] for one in queries] == ["run", "node"]
    assert not [one for one in queries if set(re.findall(r"stress_cluster_\w+", one)) - set(NAMES)]
    for title, target in QUERIES:
        selectors = re.findall(r"stress_cluster_[a-z0-9_]+(\{[^}]*\})?", target["expr"])
        assert all('run=~"$run"' in one for one in selectors), title


def test_every_metric_is_drawn_or_says_why_not():
    """A metric that is added is in its family's row by itself; one that is in no row has its reason."""
    drawn = set().union(*(re.findall(r"stress_cluster_[a-z0-9_]+", target["expr"]) for _, target in QUERIES))
    missing = [one.name for one in METRICS if one.name not in grafana.NOT_DRAWN and not drawn & {one.family(), f"{one.family()}_bucket"}]
    assert missing == []
    assert not [name for name in grafana.NOT_DRAWN if name not in CATALOGUE]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert {f"Loads: {record.family}" for record in REGISTRY.values()} <= set(rows)


def test_panels_have_places_of_their_own_and_words():
    """Ids and titles within a row are unique, no two panels overlap, and each says what it shows."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < grafana.WIDTH
    assert all(panel["description"] and panel["title"] and panel["targets"] for panel in GRAPHS)
    for panel in GRAPHS:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_every_query_is_promql(tmp_path):
    """promtool reads each of them, with Grafana's variables replaced."""
    rules = [{"record": f"a:{at}", "expr": target["expr"].replace("$__rate_interval", "20s")} for at, (_, target) in enumerate(QUERIES)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "a", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_provisioning_fits_the_rest_of_deploy():
    """The data source asks a Prometheus for what it scrapes, at its interval, and the dashboards' path is the how-to's."""
    yaml = YAML(typ="safe")
    source = yaml.load((FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    scraped = yaml.load((ROOT / "deploy" / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    (provider,) = yaml.load((FOLDER / "provisioning" / "dashboards" / "stress-cluster.yml").read_text())["providers"]
    page = (ROOT / "docs" / "how-to" / "watch-in-grafana.md").read_text()
    assert f"deploy/grafana/dashboards/{FILE.name}             {provider['options']['path']}/" in page
    for path in re.findall(r"deploy/[\w/.-]+\.(?:json|yml)", page):
        assert (ROOT / path).is_file(), path
