"""A report as one self-contained HTML page: no script, no font, image or style from elsewhere. Pure.

All text from a run is escaped; the page's policy forbids everything but its own inline style.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from ..words import amount
from .plots import Line, line_plot, nice_ceiling
from .report import Dose, Hypothesis, Node, Report

_PLOT_LIMIT: Final = 60

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2128;--dim:#667;--paper:#fff;--card:#f6f7f9;--line:#d5d9e0;
--asked:#8a63d2;--got:#0a7d4f;--warn:#b35900;--bad:#c0222b;--good:#0a7d4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--dim:#9aa3b2;--paper:#14171c;--card:#1d2229;--line:#363d48;
--asked:#b79bf0;--got:#4cc38a;--warn:#f0a04b;--bad:#ff7b80;--good:#4cc38a}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:1180px;padding:20px}
h1{font-size:20px;margin:0}h2{font-size:16px;margin:28px 0 8px}p{margin:4px 0}.dim,caption{color:var(--dim)}
.banner{border-left:8px solid var(--warn);background:var(--card);padding:14px 18px;border-radius:4px}
.banner.passed{border-color:var(--good)}.banner.failed,.banner.error,.banner.safety{border-color:var(--bad)}
.banner b{text-transform:uppercase;letter-spacing:.04em}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.warn{color:var(--warn);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:12px}
figure{margin:0;background:var(--card);border-radius:4px;padding:8px 10px}figcaption{font-size:13px}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--dim)}
svg .frame{fill:none;stroke:var(--line)}svg .grid{stroke:var(--line);stroke-dasharray:2 4}
polyline{fill:none;stroke-width:1.8}.asked{stroke:var(--asked);stroke-dasharray:6 4}.got{stroke:var(--got)}
.key{display:inline-block;width:22px;border-top:2px solid var(--got);vertical-align:middle}.key.a{border-top:2px dashed var(--asked)}
"""


def render_html(report: Report) -> str:
    """Return the page. Every plot and table is left out when it has nothing to show."""
    title = _esc(f"{report.status}: {report.scenario or report.run}")
    body = [
        _banner(report),
        _hypotheses(report.hypotheses),
        _doses(report),
        _dose_plots(report),
        _node_plots(report),
        _list("Share one machine and its limits", [", ".join(group) for group in report.shared]),
        _list("Safety", report.violations),
        _list("Not arrived when the run ended", report.outstanding),
        _list("Lost metrics", report.losses),
        _list("Differs from the replayed plan", report.drift),
        _list("Exporters", report.exporters),
        _events(report),
        _table("Figures", ("what", "value"), report.figures),
        _table("Versions", ("what", "version"), report.versions),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
    )
    return "\n".join([head, *(part for part in body if part), "</body></html>"]) + "\n"


def _esc(value: object) -> str:
    return html.escape(str(value), quote=True)


def _banner(report: Report) -> str:
    code = "" if report.exit_code is None else f" · exit code {report.exit_code}"
    facts = [
        f"scenario {report.scenario}" if report.scenario else "",
        f"run {report.run}" if report.run else "",
        f"seed {report.seed}" if report.seed else "",
        f"profile {report.profile}" if report.profile else "",
        f"{report.started} to {report.ended}" if report.ended else report.started,
    ]
    told = _esc(" · ".join(fact for fact in facts if fact))
    return (
        f'<div class="banner {_esc(report.status)}"><h1><b>{_esc(report.status)}</b>{_esc(code)}</h1>'
        f'<p>{_esc(report.headline)}</p><p class="dim">{told}</p></div>'
    )


def _hypotheses(hypotheses: Sequence[Hypothesis]) -> str:
    words = {True: '<span class="good">held</span>', False: '<span class="bad">broke</span>', None: '<span class="warn">unknown</span>'}
    rows = "".join(
        f"<tr><td>{words[one.held]}</td><td>{_esc(one.name)}</td><td>{_esc(one.expected)}</td><td>{_esc(one.seen)}</td></tr>"
        for one in hypotheses
    )
    head = "<tr><th></th><th>hypothesis</th><th>expected</th><th>seen</th></tr>"
    return f'<h2>Hypotheses</h2><div class="wide"><table>{head}{rows}</table></div>' if rows else ""


def _worst_first(doses: Sequence[Dose]) -> list[Dose]:
    return list(doses) if len(doses) <= _PLOT_LIMIT else sorted(doses, key=lambda one: one.reached is True)[:_PLOT_LIMIT]


def _left_out(shown: int, total: int, what: str) -> str:
    return f'<p class="dim">{total - shown} more {_esc(what)} are in the run directory.</p>' if total > shown else ""


def _doses(report: Report) -> str:
    words = {True: '<span class="good">reached</span>', False: '<span class="bad">missed</span>', None: '<span class="warn">unknown</span>'}
    shown = _worst_first(report.doses)
    rows = "".join(
        f"<tr><td>{words[one.reached]}</td><td>{_esc(one.kind)}</td><td>{_esc(one.node)}</td>"
        f'<td class="n">{amount(one.requested, one.unit)}</td>'
        f'<td class="n">{amount(one.achieved, one.unit)}</td><td class="dim">{_esc(one.operation)}</td></tr>'
        for one in shown
    )
    head = '<tr><th>dose</th><th>simulator</th><th>node</th><th class="n">asked</th><th class="n">achieved</th><th>operation</th></tr>'
    if not rows:
        return ""
    return f'<h2>Asked and achieved, means over the run</h2><div class="wide"><table>{head}{rows}</table></div>' + _left_out(
        len(shown), len(report.doses), "operations"
    )


def _dose_plots(report: Report) -> str:
    drawn = [one for one in _worst_first(report.doses) if one.asked or one.got]
    figures = []
    for one in drawn:
        top = _top([value for _, value in (*one.asked, *one.got)], one.unit)
        lines = [Line("asked", one.asked, "asked"), Line("achieved", one.got, "got")]
        plot = line_plot(lines, span_s=report.span_s, top=top, tick=amount(top, one.unit))
        figures.append(f"<figure><figcaption>{_esc(one.kind)} on {_esc(one.node)}</figcaption>{plot}</figure>")
    key = '<p class="dim"><span class="key a"></span> asked &nbsp; <span class="key"></span> achieved, measured from outside the load</p>'
    return f'<h2>Asked against achieved, second by second</h2>{key}<div class="plots">{"".join(figures)}</div>' if figures else ""


def _top(values: Sequence[float], unit: str) -> float:
    high = max(values, default=1.0)
    if unit == "bytes":
        scale = 1 << (10 * (max(0, int(high).bit_length() - 1) // 10))
        return nice_ceiling(high / scale) * scale
    return 1.0 if 0.5 < high <= 1.0 else nice_ceiling(high)


def _node_plots(report: Report) -> str:
    shown = report.nodes[:_PLOT_LIMIT]
    figures = "".join(_node_figure(node, report.span_s) for node in shown)
    return (
        f'<h2>What it did to the nodes</h2><div class="plots">{figures}</div>{_left_out(len(shown), len(report.nodes), "nodes")}'
        if figures
        else ""
    )


def _node_figure(node: Node, span_s: float) -> str:
    parts = []
    if node.cpu:
        parts.append("<figcaption>" + _esc(f"{node.name}: CPU busy, all processes") + "</figcaption>")
        parts.append(line_plot([Line("cpu busy", node.cpu, "got")], span_s=span_s, top=1.0, tick="100 %"))
    if node.memory:
        top = _top([value for _, value in node.memory], "bytes")
        parts.append("<figcaption>" + _esc(f"{node.name}: memory available") + "</figcaption>")
        parts.append(line_plot([Line("memory available", node.memory, "got")], span_s=span_s, top=top, tick=amount(top, "bytes")))
    return f"<figure>{''.join(parts)}</figure>" if parts else ""


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_esc(line)}</li>" for line in lines)
    return f"<h2>{_esc(title)}</h2><ul>{items}</ul>" if items else ""


def _events(report: Report) -> str:
    style = {"error": "bad", "warning": "warn"}
    rows = "".join(
        f'<tr><td class="n">{one.at_s:.1f} s</td><td class="{style.get(one.severity, "dim")}">{_esc(one.severity)}</td>'
        f"<td>{_esc(one.kind)}</td><td>{_esc(one.node)}</td><td>{_esc(one.message)}</td></tr>"
        for one in report.events
    )
    head = '<tr><th class="n">at</th><th>severity</th><th>event</th><th>node</th><th></th></tr>'
    more = _left_out(0, report.events_left_out, "events")
    return f'<h2>Events</h2><div class="wide"><table>{head}{rows}</table></div>{more}' if rows else ""


def _table(title: str, head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{_esc(name)}</td><td>{_esc(value)}</td></tr>" for name, value in rows)
    return f"<h2>{_esc(title)}</h2><table><tr><th>{head[0]}</th><th>{head[1]}</th></tr>{cells}</table>" if cells else ""
