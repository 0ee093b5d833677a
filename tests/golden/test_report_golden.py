"""Reports of a made-up run, against the files beside this one. `UPDATE_GOLDEN=1` writes them anew; read them then."""

import datetime as dt
import html.parser
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.analysis import report as reports
from cluster.analysis.page import render_html
from cluster.analysis.plots import Line, line_plot, nice_ceiling, sparkline, thin
from cluster.analysis.text import render_text
from cluster.stored import judge_status
from cluster.words import amount, closing_lines, loss_words, moment

HERE = Path(__file__).parent
START = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
NOW_NS = int(START.timestamp() * 1e9) + 60 * 10**9


def row(second, metric, node, value, worker=""):
    time = START + dt.timedelta(seconds=second)
    return {"time": time, "window_s": 1.0, "metric": metric, "node": node, "worker": worker, "count": 10, "sum": 10 * value, "last": value}


def metric_rows():
    rows = []
    for second in range(12):
        asked = 0.3 if second < 6 else 0.6
        for node, reach in (("n1", 1.0), ("n2", 0.7)):
            rows.append(row(second, "dose.requested", node, asked, f"0.0.CpuLoad@{node}"))
            rows.append(row(second, "dose.achieved", node, asked * reach, f"0.0.CpuLoad@{node}"))
            rows.append(row(second, "host.cpu.busy", node, asked * reach + 0.05))
            rows.append(row(second, "host.memory.available", node, float((8 << 30) - second * (32 << 20))))
        rows.append(row(second, "dose.requested", "n1", float(256 << 20), "0.1.MemoryPressure@n1"))
        rows.append(row(second, "dose.achieved", "n1", float(min(second, 4) * (64 << 20)), "0.1.MemoryPressure@n1"))
    return rows


EVENTS = [
    {"time": START, "severity": "info", "kind": "started", "node": "", "message": "load starts"},
    {"time": START + dt.timedelta(seconds=7.5), "severity": "warning", "kind": "shed", "node": "n2", "message": "CPU <busy> & hot"},
]
MANIFEST = {
    "run": "20260101-120000-burst-0a1b",
    "status": "inconclusive",
    "exit_code": 5,
    "scenario": {"version": 1, "name": "burst"},
    "seed": 7,
    "plan_digest": "532ef4efdddfe30f",
    "code_id": "0123456789abcdef",
    "versions": {"stress-cluster": "0.1.0", "ray": "2.60.0"},
    "settings": {"profile": {"value": "balanced", "origin": "default"}, "lease_s": {"value": 5.0, "origin": "default"}},
    "nodes": [
        {"name": "n1", "machine": "m-1", "address": "127.0.0.1"},
        {"name": "n2", "machine": "m-1", "address": "127.0.0.1"},
        {"name": "n3", "machine": "m-2", "address": "10.0.0.3"},
    ],
    "start": "2026-01-01T12:00:00+00:00",
    "end": "2026-01-01T12:00:14+00:00",
    "heartbeat": "2026-01-01T12:00:14+00:00",
}
EXPORTERS = [
    {
        "name": "csv",
        "path": "exports/m.csv",
        "complete": True,
        "delivered_rows": 1200,
        "earlier_rows": 34,
        "dropped_rows": {},
        "detail": "",
    },
    {
        "name": "probes",
        "path": "/data/<probes>.jsonl",
        "complete": False,
        "delivered_rows": 90,
        "earlier_rows": 0,
        "dropped_rows": {"newest": 30, "shutdown": 4},
        "queued_rows": 0,
        "spilled_rows": 12,
        "spill": "/fast/probes",
        "is_behind": True,
        "detail": "OSError: no space left on device",
    },
]
SUMMARY = {
    "exporters": EXPORTERS,
    "status": "inconclusive",
    "exit_code": 5,
    "message": "the dose of 0.0.CpuLoad@n2 was missed",
    "hypotheses": [
        {"name": "actors answer", "held": True, "observed": 0.012, "tolerance": "p99 <= 2s", "reason": ""},
        {"name": "memory stays", "held": None, "observed": None, "tolerance": "min >= 128MiB", "reason": "nothing was observed"},
    ],
    "dose": [
        {"operation": "0.0.CpuLoad@n1", "node": "n1", "requested": 0.45, "achieved": 0.45, "unit": "fraction", "reached": True},
        {"operation": "0.0.CpuLoad@n2", "node": "n2", "requested": 0.45, "achieved": 0.315, "unit": "fraction", "reached": False},
        {
            "operation": "0.1.MemoryPressure@n1",
            "node": "n1",
            "requested": 268435456,
            "achieved": 267386880,
            "unit": "bytes",
            "reached": True,
        },
    ],
    "peaks": {"n1": {"host.cpu.busy": 0.65, "host.memory.used": 2 << 30}, "n2": {"host.cpu.busy": 0.47}},
    "violations": [{"node": "n2", "message": "CPU was busy for 10 s, load was shed"}],
    "losses": {"dropped_samples": {"full": 3}, "undecodable_records": 0, "open_streams": "unknown"},
    "outstanding": [{"node": "n2", "incarnation": 1, "from": 9}],
    "start_skew_ms": 12.4,
    "halt_latency_ms": None,
    "drift": [{"kind": "node_gone", "message": "n4 is gone", "data": {}}],
}


@pytest.fixture(scope="module")
def report():
    return reports.assemble(MANIFEST, SUMMARY, metric_rows(), EVENTS, NOW_NS)


def check_golden(name, found):
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), f"{name} differs; UPDATE_GOLDEN=1 writes it anew"


def test_text(report):
    """The text form, word by word."""
    check_golden("report.txt", render_text(report))


def test_json(report):
    """The JSON form holds all that the page shows."""
    check_golden("report.json", json.dumps(report.to_json(), indent=1) + "\n")


def test_page(report):
    """The page, byte by byte."""
    check_golden("report.html", render_html(report))


def test_closing_lines(tmp_path):
    """The last words of a run say verdict, asked, achieved, effect on the nodes, what broke, and where the report lies."""
    (tmp_path / "report.html").write_text("")
    lines = closing_lines(SUMMARY, tmp_path)
    check_golden("closing.txt", "\n".join(lines).replace(str(tmp_path), "RUN") + "\n")


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "action", "data"} or name.startswith("on")]
        if tag not in {"meta", "br", "rect", "line"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def parsed(page):
    found = Page()
    found.feed(page)
    assert found.open == []
    return found


def test_page_needs_nothing_from_elsewhere(report):
    """No script, link, image, font or import; every tag is closed; all plots are inside."""
    page = render_html(report)
    found = parsed(page)
    assert found.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    assert found.links == []
    assert not re.search(r"https?:|@import|url\(", page)
    assert page.count("<svg") == 3 + 4  # three doses; CPU and memory of two nodes that have figures
    assert page.count('class="asked"') == 3


HOSTILE = st.text(alphabet=st.sampled_from("<>&\"'/=ab \n"), max_size=30).map(lambda text: f"<script>{text}")


@given(HOSTILE, HOSTILE)
def test_nothing_in_a_run_becomes_markup(name, message):
    """Whatever names and messages hold, the page's tags are those of an empty-worded run."""
    manifest = {**MANIFEST, "scenario": {"name": name}, "nodes": [{"name": name, "machine": message}], "versions": {name: message}}
    summary = {
        **SUMMARY,
        "message": message,
        "hypotheses": [{"name": name, "held": False, "tolerance": message, "reason": message}],
        "violations": [message],
        "dose": [{"operation": f"0.{name}@{name}", "node": name, "requested": 1, "achieved": 1, "unit": "bytes", "reached": True}],
    }
    events = [{"time": START, "severity": name, "kind": name, "node": name, "message": message}]
    rows = [row(0, "host.cpu.busy", name, 0.5), row(1, "dose.achieved", name, 0.5, f"0.{name}@{name}")]
    page = render_html(reports.assemble(manifest, summary, rows, events, NOW_NS))
    assert "<script" not in page
    assert "script" not in parsed(page).tags


@pytest.mark.parametrize(
    ("status", "age_s", "want"),
    [
        pytest.param("running", 4.9, "running", id="heartbeat-younger-than-the-lease"),
        pytest.param("running", 5.1, "error", id="heartbeat-older-than-the-lease"),
        pytest.param("passed", 9_999.0, "passed", id="an-ended-run-stays-what-it-is"),
    ],
)
def test_a_dead_harness_reads_as_error(status, age_s, want):
    """A `running` manifest whose heartbeat is older than the lease is `error`, and the reader is told what to do."""
    beat = dt.datetime.fromtimestamp(NOW_NS / 1e9 - age_s, dt.UTC).isoformat()
    manifest = {**MANIFEST, "status": status, "exit_code": None, "heartbeat": beat}
    found = reports.assemble(manifest, {}, [], [], NOW_NS)
    assert found.status == want
    assert ("recover" in found.headline) == (want == "error")


def test_running_without_a_heartbeat_is_dead():
    """No sign of life is no life."""
    assert judge_status({"status": "running"}, {}, NOW_NS)[:2] == ("error", 3)


@pytest.mark.parametrize(
    "value", ["2026-01-01T12:00:00+00:00", "2026-01-01T12:00:00", START, START.timestamp(), int(START.timestamp()) * 10**9]
)
def test_moments_are_read_in_every_form(value):
    """ISO text, datetime, seconds and nanoseconds are the same moment."""
    assert moment(value) == START.timestamp()


@pytest.mark.parametrize("value", [None, "", "soon", True, 0, -1, {}])
def test_what_is_no_moment_is_none(value):
    """Nothing is guessed."""
    assert moment(value) is None


def test_empty_run_has_a_report():
    """A directory without documents or data gives an honest page, not a failure."""
    found = reports.assemble({}, {}, [], [], NOW_NS)
    assert found.status == "error"
    parsed(render_html(found))
    assert "ERROR" in render_text(found)
    assert closing_lines({}, None)[1] == "Asked: nothing was put on any node."


def test_large_runs_show_the_worst_and_count_the_rest():
    """With 1,000 operations the page shows the missed ones first, says how many it leaves out, and stays small."""
    dose = [
        {
            "operation": f"0.0.CpuLoad@n{index}",
            "node": f"n{index}",
            "requested": 0.5,
            "achieved": 0.5,
            "unit": "fraction",
            "reached": index != 777,
        }
        for index in range(1000)
    ]
    nodes = [{"name": f"n{index}"} for index in range(1000)]
    rows = [row(second, "host.cpu.busy", f"n{index}", 0.5) for second in range(3) for index in range(1000)]
    found = reports.assemble({**MANIFEST, "nodes": nodes}, {**SUMMARY, "dose": dose}, rows, EVENTS * 300, NOW_NS)
    page = render_html(found)
    assert "n777" in page.split("Hypotheses")[1].split("</table>")[1]
    assert "940 more operations" in page
    assert "400 more events" in page
    assert len(page) < 400_000
    assert "n777" in render_text(found)


def test_written_report_appears_whole(tmp_path, report, monkeypatch):
    """A page that could not be written leaves neither a torn page nor a partial file, and the old page stays."""
    reports.write(tmp_path, report)
    before = (tmp_path / "report.html").read_bytes()

    def full(number):
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        reports.write(tmp_path, report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == before


def test_reads_a_run_directory(tmp_path):
    """What the aggregator leaves on disk gives the same report as its parts."""
    from actors.clock import VirtualClock
    from cluster.metrics.aggregator import Aggregator

    run_dir = tmp_path / MANIFEST["run"]
    aggregator = Aggregator(MANIFEST["run"], run_dir, VirtualClock())
    try:
        aggregator.finish(SUMMARY, MANIFEST)
    finally:
        aggregator.close()
    found = reports.read(run_dir, NOW_NS)
    assert found.status == "inconclusive"
    assert [one.operation for one in found.doses] == [one["operation"] for one in SUMMARY["dose"]]
    assert reports.write(run_dir, found) == run_dir / "report.html"


def test_series_come_from_parquet(tmp_path):
    """Curves are read from the columns that the contract names."""
    table = pa.Table.from_pylist(metric_rows())
    pq.write_table(table, tmp_path / "metrics.parquet")
    found = reports.assemble(MANIFEST, SUMMARY, reports._rows(pq.read_table(tmp_path / "metrics.parquet")), EVENTS, NOW_NS)
    assert found == reports.assemble(MANIFEST, SUMMARY, metric_rows(), EVENTS, NOW_NS)
    assert found.doses[1].got[-1] == (11.0, pytest.approx(0.42))


# ---- plots and words


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e9, 1e9)), min_size=1, max_size=2000))
def test_thinning_keeps_the_extremes(points):
    """However long a run, its highest and lowest values are drawn."""
    points = sorted(points)
    kept = thin(points, 100)
    assert len(kept) <= max(100, 2 * 51)
    assert max(value for _, value in kept) == max(value for _, value in points)
    assert min(value for _, value in kept) == min(value for _, value in points)
    assert kept == sorted(kept, key=lambda point: point[0])


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-10, 10)), max_size=50), st.floats(0, 100), st.floats(0, 10))
def test_curves_stay_inside_their_frame(points, span_s, top):
    """No value, however far out, is drawn outside of the plot."""
    svg = line_plot([Line("x", points, "got")], span_s=span_s, top=top, tick="1")
    for pairs in re.findall(r'points="([^"]*)"', svg):
        for pair in pairs.split():
            x, y = map(float, pair.split(","))
            assert 52 <= x <= 512
            assert 10 <= y <= 110


@given(st.floats(1e-6, 1e15))
def test_axis_tops_are_at_or_above_the_value(value):
    """An axis is never cut off, and never more than two and a half times too high."""
    assert value * (1 - 1e-9) <= nice_ceiling(value) <= value * 2.5 * (1 + 1e-9)


@given(st.lists(st.floats(0, 1), max_size=200))
def test_sparklines_are_short(values):
    """A sparkline has a character per value, at most 32."""
    assert len(sparkline(values, 1.0)) == min(32, len(values))


@pytest.mark.parametrize(
    ("value", "unit", "want"),
    [
        (0.5, "fraction", "50.0 %"),
        (0.5, "ratio", "50.0 %"),
        (0, "bytes", "0 B"),
        (1023, "bytes", "1023 B"),
        (1024, "bytes", "1.0 KiB"),
        (256 << 20, "bytes", "256.0 MiB"),
        (3.5, "seconds", "3.5 seconds"),
    ],
)
def test_amounts_in_words(value, unit, want):
    """Quantities carry the unit that a person would say."""
    assert amount(value, unit) == want


def test_losses_in_words():
    """What is zero is not told, what is unknown is."""
    assert loss_words({"a": 0, "b": {}, "c": {"full": 2, "late": 0}, "d": "unknown"}) == ["c (full) 2", "d unknown"]
