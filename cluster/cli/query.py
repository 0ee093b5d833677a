"""`query`: figures of a run's metrics, or how two of them go together, as a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.clock import SystemClock

from ..settings import Settings
from ..words import amount
from . import options
from .export import readable
from .output import emit, say, table
from .report import whole_run

if TYPE_CHECKING:
    from ..metrics.answer import Answer
    from ..metrics.question import Words
    from ..metrics.related import Related
    from ..metrics.sketches import Figure

_Texts = list[str] | None


def query(
    run: Annotated[str, typer.Argument(help="A run id, a run directory, or `latest`.")],
    metric: Annotated[str, typer.Argument(help="A metric of `list metrics`, or a glob such as 'probe.*'.")],
    *,
    stat: Annotated[
        _Texts, typer.Option("--stat", help="count, sum, rate, min, max, mean, last, p50, p90, p99 or p999; repeatable. Default: by kind.")
    ] = None,
    node: Annotated[_Texts, typer.Option("--node", metavar="NODE", help="Only this node, or a glob; repeatable.")] = None,
    worker: Annotated[
        _Texts, typer.Option("--worker", metavar="WORKER", help="Only this operation or part, or a glob; repeatable.")
    ] = None,
    phase: Annotated[_Texts, typer.Option("--phase", metavar="PHASE", help="Only this phase, or a glob; repeatable.")] = None,
    label: Annotated[
        _Texts, typer.Option("--label", metavar="NAME=VALUE", help="Only with this label; VALUE may be a glob; repeatable.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", help="Windows from here on: 10s after the run's start, or a UTC time.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Windows that begin before this.")] = None,
    by: Annotated[
        _Texts, typer.Option("--by", metavar="WHAT", help="A row for each node, worker, phase, time or label; repeatable.")
    ] = None,
    every: Annotated[str | None, typer.Option("--every", help="Length of a time step, such as 5s; means --by time.")] = None,
    accumulator: Annotated[str | None, typer.Option("--accumulator", help="Figures of this accumulator, an installed one as well.")] = None,
    of: Annotated[str | None, typer.Option("--of", metavar="LABEL", help="The label whose values an accumulator takes.")] = None,
    other: Annotated[str | None, typer.Option("--with", metavar="METRIC", help="Correlate with this metric, step by step.")] = None,
    lag: Annotated[str | None, typer.Option("--lag", help="With --with: try all lags up to this, either way.")] = None,
    config: options.Config = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> int:
    """Ask a run's metrics: figures over series, windows and nodes. 0 also when no window fits, which is said.

    Windows are put together exactly: counts and sums add, quantiles come from merged digests (0.4 % off at most). A window
    belongs to the step in which it begins. A rate goes by the time asked for in which the run was observed, so the rates of
    parts add up. A run that still runs answers as it stands.

    --with correlates the values of each step (1 s unless --every says otherwise) by Pearson and by Spearman and finds the lag at which
    METRIC leads (above 0) or follows. --worker and --label choose windows of the first metric only. Fewer than 10 steps with both
    are refused; below the threshold a coefficient is what chance gives.

    Examples:
      stress-cluster query latest probe.response
      stress-cluster query latest probe.response --stat p99 --by node --every 5s --since 10s
      stress-cluster query latest errors.seen --accumulator top --of code
      stress-cluster query latest host.cpu.busy --with probe.response --lag 10s --by node
    """
    once = {
        "metric": metric,
        "since": since,
        "until": until,
        "every": every,
        "accumulator": accumulator,
        "of": of,
        "with": other,
        "lag": lag,
    }
    lists = {"stat": stat, "node": node, "worker": worker, "phase": phase, "label": label, "by": by}
    words = {word: [text] for word, text in once.items() if text is not None} | {word: texts for word, texts in lists.items() if texts}
    return _ask(run, words, options.resolve(config), address, as_json=as_json)


def _ask(run: str, words: Words, settings: Settings, address: str | None, *, as_json: bool) -> int:
    from ..analysis.load import ask_run  # noqa: PLC0415  # reads Arrow files
    from ..files import read_json  # noqa: PLC0415
    from ..metrics.answer import Answer  # noqa: PLC0415
    from ..metrics.asking import About, document  # noqa: PLC0415
    from ..metrics.question import parse  # noqa: PLC0415
    from ..stored import judge_status  # noqa: PLC0415

    timeless = {word: texts for word, texts in words.items() if word not in {"since", "until"}}  # offsets need the run's start
    parse(timeless)  # what is wrong in the words alone is said before anything is fetched
    with readable(run, settings):
        folder, _ = whole_run(run, settings, address)
        manifest, summary = read_json(folder / "manifest.json") or {}, read_json(folder / "summary.json") or {}
        status, _, died = judge_status(manifest, summary, SystemClock().wall_ns())
        about = About.of(manifest, folder.resolve().name, status)
        found = ask_run(folder, words, about)
    if status == "running":
        say(f"{about.run} still runs: the answer is of what has arrived by now")
    if died:
        say(died)
    lines = answer_lines(found) if isinstance(found, Answer) else related_lines(found)
    emit(document(found, about), as_json, lines)
    return 0


def answer_lines(found: Answer) -> list[str]:
    """Return an answer as a table with what its figures mean, or why it is empty."""
    from actors.metrics.registry import CATALOGUE  # noqa: PLC0415

    if not found.rows:
        return [found.note]
    names = list(dict.fromkeys(name for row in found.rows for name in row.figures))
    kinds = list(dict.fromkeys((row.metric, row.unit) for row in found.rows))
    several = [*(["metric"] if len({metric for metric, _ in kinds}) > 1 else []), *(["unit"] if len(kinds) > 1 else [])]
    rows = []
    for row in found.rows:
        head = [{"metric": row.metric, "unit": row.unit or "-"}[name] for name in several]
        cells = [_cell(row.figures[name]) if name in row.figures else "-" for name in names]
        rows.append([*head, *(value or "-" for _, value in row.by), row.windows, *cells])
    heading = [f"{metric}: {CATALOGUE[metric].help}" for metric in dict.fromkeys(metric for metric, _ in kinds)]
    return [*heading, "", *table((*several, *found.query.by, "windows", *names), rows), *_bounds(found)]


def _cell(figure: Figure) -> str:
    value, unit = figure.value, figure.unit
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(f"{item} {low}" if low == high else f"{item} {low}..{high}" for item, low, high in value) or "-"
    base, slash, _ = unit.partition("/second")
    shown = {"1": "", "seconds": "s"}.get(base, base)
    return f"{amount(value, shown)}{'/s' if slash else ''}"


def _bounds(found: Answer) -> list[str]:
    """Return how far estimated figures may be off: the widest bound of each."""
    words = {
        "value_relative": "of the value",
        "rank": "of the ranks",
        "count_relative": "of the count",
        "count_absolute": "samples",
    }
    widest: dict[str, Any] = {}
    for row in found.rows:
        for name, figure in row.figures.items():
            if figure.bound is not None and figure.bound.size and (name not in widest or figure.bound.size > widest[name].size):
                widest[name] = figure.bound
    groups: dict[str, list[str]] = {}
    for name, bound in widest.items():
        size = f"{bound.size:g}" if bound.kind == "count_absolute" else f"{bound.size * 100:.2g} %"
        groups.setdefault(f"{size} {words[bound.kind]}", []).append(name)
    lines = [f"{', '.join(names)}: estimated, at most {told} off" for told, names in groups.items()]
    return ["", *lines] if lines else []


def related_lines(found: Related) -> list[str]:
    """Return a correlation as a table: for each part and method the coefficient, its lag, and whether it is more than chance."""
    first, other = found.query.metrics[0], found.query.other
    split = [name for name in found.query.by if name != "time"]
    rows: list[Sequence[Any]] = []
    refused = []
    for pair in found.pairs:
        where = [value for _, value in pair.by]
        for one in pair.correlations:
            lag_s = one.lag_steps * found.step_s
            said = "notable" if one.notable else "chance"
            rows.append(
                [*where, one.method, f"{one.r:.3f}", f"{lag_s:g} s", one.pairs, f"{one.effective:.0f}", f"{one.threshold:.3f}", said]
            )
        refused += [f"{', '.join(where)}: {pair.refusal}"] if pair.refusal else []
    heading = f"{first} ({found.stats[0]}) with {other} ({found.stats[1]}), steps of {found.step_s:g} s"
    lags = f", lags up to {found.query.lag_us / 1e6:g} s; above 0, {other} follows" if found.query.lag_us else ""
    columns = (*split, "method", "r", "lag", "n", "effective n", "threshold", "which is")
    return [heading + lags, "", *table(columns, rows), *refused]
