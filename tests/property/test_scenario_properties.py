"""Properties of scenarios and their text, over generated scenarios, values and bytes."""

from __future__ import annotations

import json
import pickle

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import shape as shapes
from actors.errors import InputError
from actors.metrics.registry import CATALOGUE
from actors.simulator import REGISTRY
from scenarios import combinators, composites, document, exporters, hypotheses, kinds, model, recording, targets, text, units
from scenarios.simulators import USES_UP

fraction = st.floats(0, 1)
size = st.integers(0, 1 << 53)
seconds = st.floats(0.1, units.DURATION_MAX_S)
word = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
line = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), include_characters=" "), max_size=20).filter(
    str.isprintable
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def shape(level):
    pair = st.lists(level, min_size=2, max_size=2).map(sorted)
    return st.one_of(
        level.map(shapes.Constant),
        st.builds(shapes.Ramp, level, level, seconds),
        st.builds(shapes.Steps, st.lists(level, min_size=1, max_size=4).map(tuple), seconds),
        st.builds(lambda levels, period: shapes.Sine(*levels, period), pair, seconds),
        st.builds(lambda levels, period, duty: shapes.Square(*levels, period, duty), pair, seconds, fraction),
        st.builds(lambda levels, period: shapes.Burst(*levels, period, max(0.1, period / 3)), pair, seconds),
        st.builds(lambda levels, period: shapes.Sawtooth(*levels, period), pair, seconds),
        st.builds(shapes.Leak, level, level),
        st.builds(shapes.Custom, word, level),
    )


LEVELS = {"fraction": fraction, "bytes": size, "count": st.integers(0, 1 << 40), "per_second": st.floats(0, 1e9)}
# Made once: a strategy that is made in each draw is checked in each. Deferred: the words for one are not as long as all of them.
STRENGTHS = {unit: st.deferred(lambda level=level: shape(level)) for unit, level in LEVELS.items()}
# Of what uses up a number of things, none at any time is nothing to ask for.
SOME = {
    unit: found.filter(lambda one: isinstance(one, shapes.Custom) or one.peak(units.DURATION_MAX_S) > 0)
    for unit, found in STRENGTHS.items()
}


def option_values(option):
    """Return values of an option that it takes: of each kind, within its bounds."""
    low, high = option.low, min(option.top, 1 << 53)
    whole = st.integers(int(low), int(high))
    return {
        "choice": st.sampled_from(option.choices or ("",)),
        "flag": st.booleans(),
        "text": st.sampled_from(option.examples) if option.examples else line,
        "path": st.just("") | line.map(lambda name: f"/{name}"),
        "integer": whole,
        "bytes": whole,
        "cores": st.just("all") | st.integers(1, 64),
    }.get(option.kind, st.floats(low, high))


def loads(record):
    """Return loads of a record, in each of its units."""
    options = st.fixed_dictionaries({}, optional={option.name: option_values(option) for option in record.options})
    strength = st.one_of([st.tuples(st.just(unit), SOME[unit] if record.family in USES_UP else STRENGTHS[unit]) for unit in record.units])
    return st.builds(lambda one, given: kinds.KINDS[record.name](**{one[0]: one[1]}, **given), strength, options)


simulator = st.one_of([loads(record) for record in REGISTRY.values()])
selectors = st.builds(
    targets.Targets,
    role=st.sampled_from(targets.ROLES),
    names=st.lists(word, max_size=3, unique=True).map(tuple),
    addresses=st.lists(word, max_size=2, unique=True).map(tuple),
    labels=st.dictionaries(word, line, max_size=3),
    count=st.none() | st.integers(1, 100),
    choice=st.sampled_from(targets.CHOICES),
)
hold = st.builds(
    combinators.Hold, simulator, seconds.map(lambda span: min(span, 1000.0)), line, st.none() | selectors, st.none() | st.floats(0.001, 1)
)


def is_plan(part):
    """Tell whether a scenario takes it: what is nested may last too long, and what is cut may hold no load."""
    try:
        return bool(combinators.check_tree(part))
    except InputError:
        return False


def shares(inner):
    return st.lists(st.builds(composites.Share, st.floats(1e-3, 1e9), inner), min_size=1, max_size=3).map(tuple)


tree = st.recursive(
    hold,
    lambda inner: st.one_of(
        st.builds(combinators.Sequence, st.lists(inner | st.just(combinators.Pause(0.5)), min_size=1, max_size=3).map(tuple), line),
        st.builds(combinators.Together, st.lists(inner, min_size=1, max_size=3).map(tuple), line),
        st.builds(composites.Weighted, shares(inner), line),
        st.builds(composites.Choose, shares(inner), line),
        st.builds(composites.Where, st.builds(targets.Targets, role=st.sampled_from(targets.ROLES)), inner, st.none() | inner),
        st.builds(composites.Repeat, st.integers(1, 3), inner),
        st.builds(composites.Scaled, fraction, inner),
        st.builds(composites.Limited, seconds, inner),
        st.builds(
            lambda part, rounds, *rest: composites.Held("mix", part, min(max(rounds * part.duration_s, 0.1), units.DURATION_MAX_S), *rest),
            inner,
            st.floats(0.9, 3),
            fraction,
            line,
            st.none() | selectors,
            st.none() | st.floats(0.001, 1),
        ),
    ),
    max_leaves=6,
).filter(is_plan)


@st.composite
def threshold(draw):
    metric = draw(st.sampled_from(sorted(CATALOGUE)))
    unit = draw(st.sampled_from(("", *CATALOGUE[metric].other_units)))
    labels = draw(st.dictionaries(st.sampled_from(CATALOGUE[metric].labels), line)) if CATALOGUE[metric].labels else {}
    return hypotheses.Threshold(
        metric,
        draw(st.sampled_from(hypotheses.STATS)),
        draw(st.sampled_from(hypotheses.OPERATORS)),
        draw(st.floats(-1e18, 1e18) | fraction | size | seconds),
        unit,
        draw(line),
        labels,
        draw(st.sampled_from(hypotheses.WHEN)),
        draw(line),
    )


probe = st.builds(
    hypotheses.ActorProbe,
    value_s=st.floats(0, 600),
    rate_hz=st.floats(0.01, 1000),
    timeout_s=st.floats(0.01, 600),
    stat=st.sampled_from(hypotheses.PROBE_STATS),
    op=st.sampled_from(("<=", "<")),
    errors_fraction_max=fraction,
    target=st.sampled_from(hypotheses.PLACES),
    name=line,
)
overrides = st.builds(
    model.LimitOverrides,
    **{name: st.none() | (st.floats(0.1, 3600) if name.endswith("_s") else fraction) for name in model.LimitOverrides.__dataclass_fields__},
)
globs = st.sampled_from(["*", "load.*", "load.slice", "*.slice", "load.[os]*"])
thinned = st.one_of(
    st.builds(recording.Always, globs),
    st.builds(recording.Probability, globs, st.floats(1e-9, 1)),
    st.builds(recording.Rate, globs, st.floats(1e-6, 1e9)),
    st.builds(recording.First, globs, st.integers(0, recording.COUNT_MAX)),
    st.builds(recording.Adaptive, globs, st.floats(10, 1e9)),
)
series = st.one_of(
    *(st.builds(kind, globs) | st.builds(kind, st.just("host.*"), st.just("gauge")) for kind in (recording.Keep, recording.LeaveOut))
)
metrics = st.builds(
    lambda level, filters, sampling, mode: recording.Metrics(level, "detailed" if sampling else mode, filters, sampling),
    st.sampled_from(recording.METRIC_LEVELS),
    st.lists(series, max_size=4),
    st.lists(thinned, max_size=4),
    st.sampled_from(recording.METRIC_MODES),
)


def made(metrics, hypotheses, **parts):
    """Return a scenario without the hypotheses about what it does not record: that would be none."""
    asked = [item for item in hypotheses if not (hasattr(item, "metric") and metrics.leaves_out(item.metric))]
    return model.Scenario(metrics=metrics, hypotheses=tuple(asked), **parts)


when = st.builds(exporters.When, st.none() | line, st.none() | line, st.none() | line, labels=st.dictionaries(word, line, max_size=2))
names = st.lists(word, min_size=1, max_size=3)
rules = st.one_of(
    st.builds(exporters.Rule, when, keep=st.booleans()),
    st.builds(exporters.Rule, when, one_in=st.integers(1, 1000)),
    st.builds(exporters.Rule, when, drop_labels=names),
    st.builds(exporters.Rule, when, rename=word),
    st.builds(
        exporters.Rule,
        when,
        every_s=seconds,
        by=st.lists(st.sampled_from(["node", "worker", "labels", "labels.x"])),
        late_s=st.floats(0, 60),
    ),
)


formats = {
    "time": st.sampled_from(exporters.TIMES),
    "decimals": st.none() | st.integers(0, 15),
    "non_finite": st.sampled_from(exporters.NON_FINITE),
    "digests": st.booleans(),
    "nulls": st.booleans(),
    "sort_keys": st.booleans(),
    "indent": st.none() | st.integers(0, 8),
    "separator": st.characters(max_codepoint=126, exclude_characters='"\r\n\0', exclude_categories=("Cc",)) | st.just("\t"),
    "quote_all": st.booleans(),
    "line_end": st.sampled_from(exporters.LINE_ENDS),
    "labels": st.sampled_from(exporters.LABELS),
    "new_label": st.sampled_from(exporters.NEW_LABELS),
}


@st.composite
def destination(draw, at):
    batch_rows, batch_bytes = draw(st.integers(1, 10_000)), draw(st.integers(1, 1 << 30))
    spill = draw(st.sampled_from([False, True, "/fast"]))
    kind = draw(st.sampled_from(exporters.TYPES))
    grows = kind in exporters.GROWING
    return exporters.Destination(
        kind,
        f"{draw(word)}-{at}".replace("/", "_"),
        f"d{at}",
        draw(st.sampled_from([one for one in exporters.OVERFLOWS if spill or one != "spill"])),
        batch_rows + draw(st.integers(0, 10_000)),
        batch_bytes + draw(st.integers(0, 1 << 30)),
        batch_rows,
        batch_bytes,
        draw(seconds),
        draw(seconds),
        draw(st.integers(1, 1000)),
        draw(st.builds(exporters.Breaker, st.integers(1, 9), seconds, st.integers(1, 9), st.floats(0.001, 1), st.floats(1, 60))),
        spill,
        draw(st.integers(1 << 20, 1 << 40)),
        draw(st.booleans()) if spill else False,
        draw(st.lists(rules, max_size=2)),
        draw(st.sampled_from(exporters.SYNCS)) if grows or spill else "interval",
        draw(st.none() | st.integers(1, 1 << 40)) if grows else None,
        exporters.Format(**{name: draw(formats[name]) for name in exporters.FORMAT_OF[kind]}),
    )


@st.composite
def where_to(draw):
    prometheus = draw(st.none() | st.builds(exporters.Prometheus, st.integers(0, 65_535), word))
    found = [draw(destination(at)) for at in range(draw(st.integers(0, 2)))]
    known = [one.name for one in found]
    some = st.lists(st.sampled_from(known), min_size=1, max_size=2) if known else st.nothing()
    routes = draw(st.lists(st.builds(exporters.Route, some, when), max_size=2)) if known else []
    return exporters.Exporters(prometheus, found, routes, draw(some) if known and draw(st.booleans()) else (), draw(st.floats(0, 60)))


scenario = st.builds(
    made,
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True),
    plan=tree,
    seed=st.integers(0, model.SEED_MAX),
    description=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), include_characters="\n "), max_size=60).filter(
        lambda words: all(char.isprintable() or char == "\n" for char in words)
    ),
    targets=selectors,
    budget=st.builds(
        model.Budget,
        nodes_max=st.none() | st.integers(1, 99),
        cpu_cores_max=st.none() | st.floats(0, 1e6),
        memory_bytes_max=st.none() | size,
    ),
    profile=st.none() | st.sampled_from(model.PROFILES),
    limits=overrides,
    on_node_lost=st.sampled_from(model.ON_NODE_LOST),
    hypotheses=st.lists(threshold() | probe, max_size=3, unique_by=hypotheses.title).map(tuple),
    metrics=metrics,
    exporters=where_to(),
)


@given(scenario)
@QUICK
def test_writing_and_reading_is_equality(value):
    """Scenario -> YAML -> Scenario is equality, and the YAML is a fixed point."""
    written = text.dump(value)
    assert text.load(written) == value
    assert text.load(written.encode()) == value
    assert text.dump(text.load(written)) == written


@given(scenario)
@QUICK
def test_every_scenario_fits_the_schema_and_survives_transport(value):
    """What is written validates against the JSON Schema, as JSON reads back, and pickles."""
    data = json.loads(json.dumps(text.to_data(value), allow_nan=False))
    VALIDATOR.validate(data)
    assert text.from_data(data) == value
    assert pickle.loads(pickle.dumps(value)) == value


VALIDATOR = jsonschema.Draft202012Validator(text.json_schema())


@given(st.floats(0, units.DURATION_MAX_S))
def test_durations_read_back_exactly(value):
    """Every duration is written so that the same float is read."""
    written = units.format_duration(value)
    assert (units.parse_duration(written) if isinstance(written, str) else written) == value


@given(size)
def test_sizes_read_back_exactly(value):
    """Every size is written so that the same number of bytes is read."""
    assert units.parse_size(units.format_size(value)) == value


@given(fraction)
def test_fractions_read_back_exactly(value):
    """Every fraction is written so that the same float is read, as a percentage or a number."""
    written = units.format_fraction(value)
    assert (units.parse_fraction(written) if isinstance(written, str) else written) == value


@given(st.text(max_size=20) | st.text("0123456789.smhdKMGTiB% e-", max_size=8))
def test_any_text_is_a_quantity_or_an_input_error(words):
    """No text makes a unit parser raise anything but `InputError`, and what reads is finite and not negative."""
    for parse in (units.parse_duration, units.parse_size, units.parse_fraction):
        try:
            assert 0 <= parse(words) < float("inf")
        except InputError:
            continue


@given(st.binary(max_size=200) | st.text(max_size=200) | st.text(" \n-:[]{},&*!?|>'\"%@`#abc1~", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_document_is_a_scenario_or_an_input_error(content):
    """No bytes and no text make the loader raise anything but `InputError` that names the source."""
    error = None
    try:
        text.load(content, "x.yaml")
    except InputError as caught:
        error = caught
    assert error is None or error.message.startswith("x.yaml")


BURST = (
    "version: 1\nname: x\nplan:\n  sequence:\n  - CpuLoad: {fraction: 50%}\n    for: 10s\n  - MemoryPressure: {bytes: 1MiB}\n    for: 10s\n"
)


@given(st.integers(0, len(BURST)), st.integers(0, 6), st.text(" \n-:[]{},&*!%abc19.~", max_size=6))
@settings(deadline=None, max_examples=300)
def test_a_damaged_document_is_a_scenario_or_an_input_error(at, gone, put):
    """Cutting and inserting anywhere in a good document gives a scenario that is canonical, or an `InputError`."""
    try:
        value = text.load(BURST[:at] + put + BURST[at + gone :])
    except InputError:
        return
    assert text.load(text.dump(value)) == value
    VALIDATOR.validate(text.to_data(value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda d: st.lists(d, max_size=3) | st.dictionaries(st.text(max_size=5), d, max_size=3),
    )
)
@QUICK
def test_any_data_is_a_scenario_or_an_input_error(data):
    """No JSON-like data makes the reader raise anything but `InputError`, wherever in a scenario it stands."""
    base = text.to_data(text.load(BURST))
    for key in ("plan", "targets", "hypotheses", "budget", "limits", "seed", "name", "version"):
        try:
            text.from_data({**base, key: data})
        except InputError:
            continue


@given(st.text("0123456789+-.eEnaifNINF~trufalsTRUFALS ", max_size=8))
def test_unquoted_words_mean_what_yaml_says(words):
    """The core schema agrees with Python's own idea of the number, and everything else stays text."""
    value = document.resolve(words)
    assert value == words or value is None or isinstance(value, (bool, float, int))
    if isinstance(value, int) and not isinstance(value, bool):
        assert value == int(words)


@given(scenario, st.integers(0, 1 << 62))
@QUICK
def test_setting_what_is_already_so_changes_nothing(value, seed):
    """--set with the canonical document's own value is the identity, and a seed that is set is the seed."""
    assert text.apply_settings(value, [f"seed={value.seed}", f"name='{value.name}'"]) == value
    assert text.apply_settings(value, [f"seed={seed}"]).seed == seed


@given(where_to())
@QUICK
def test_what_a_scenario_says_of_exporters_is_what_the_pipeline_takes(value):
    """Every valid value makes limits, a breaker and rules without a complaint."""
    from pathlib import Path

    from cluster.exporters import destinations
    from cluster.exporters.rules import parse

    for one in value.destinations:
        limits, policy = destinations.limits_of(one), destinations.policy_of(one)
        assert (limits.queue_rows, limits.batch_bytes, policy.reset_s) == (one.queue_rows, one.batch_bytes, one.breaker.reset_s)
        destinations.make(one, Path("/nowhere") / one.path)
    made = parse(destinations.rules_of(value))
    made.check([one.name for one in value.destinations])
    assert [route.to for route in made.routes] == [route.to for route in value.routes]
    assert {name: len(chain) for name, chain in made.chains.items()} == {
        one.name: len(one.rules) for one in value.destinations if one.rules
    }
