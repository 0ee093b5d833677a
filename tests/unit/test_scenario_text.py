"""Scenarios as YAML: what reads, what is written, what the schema says, what --set does."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import pytest

from actors import shape as shapes
from actors.errors import InputError
from actors.messages import Capacity, NodeSpec
from actors.simulator import REGISTRY, peak_amounts
from scenarios import (
    ActorProbe,
    CpuLoad,
    DiskFill,
    MemoryPressure,
    Scenario,
    Targets,
    Threshold,
    form,
    hold,
    pause,
    sequence,
    text,
    together,
)
from scenarios import kinds as loads
from scenarios.catalogue import NAMES, describe, get
from scenarios.model import LimitOverrides
from scenarios.plan import resolve

ROOT = Path(__file__).resolve().parents[2]
FULL = """
version: 1
name: full
description: every key once
seed: 9
targets: {role: worker, labels: {zone: a}, fraction: 50%, choice: seeded}
budget: {nodes_max: 3, cpu_cores_max: 4.5, memory_max: 2GiB, disk_max: 1GB, duration_max: 10m}
profile: conservative
limits: {memory_fraction: 40%, cpu_busy_for: 3s, stale: 1s}
on_node_lost: continue
hypotheses:
  - threshold: {name: t, metric: host.memory.available, stat: min, op: ">=", value: 128MiB, node: n1, when: after}
  - threshold: {metric: dose.achieved, stat: max, op: <, value: 64MiB, unit: bytes}
  - threshold: {metric: probe.failures, stat: sum, op: <=, value: 3, labels: {reason: timeout}}
  - actor_probe: {name: p, rate_hz: 20, timeout: 3s, target: head, stat: p50, op: <, value: 250ms, errors_fraction_max: 1%}
metrics:
  level: verbose
  mode: detailed
  filters:
    - keep: {metric: host.cpu.busy}
    - keep: {metric: host.memory.*, kind: gauge}
    - leave_out: {metric: "host.*"}
  sampling:
    - always: {metric: load.operations}
    - probability: {metric: "load.s*", share: 10%}
    - rate: {metric: "*.slice", rate_hz: 100}
    - first: {metric: load.slice, count: 5}
    - adaptive: {metric: "load.*", rate_hz: 1000}
exporters:
  prometheus: {port: 9464, host: 0.0.0.0}
  destinations:
    - {type: csv, path: "/data/{run}.csv", name: table, overflow: drop_oldest, queue_rows: 500, queue_size: 8MiB, batch_rows: 100,
       sync: always, rotate: 64MiB, format: {separator: ";", labels: json, line_end: crlf, decimals: 3}}
    - type: jsonl
      path: probes.jsonl
      batch_size: 1MiB
      batch_age: 250ms
      flush: 2s
      format: {time: unix_ms, nulls: false}
      spill: true
      spill_max: 64MiB
      write_ahead: true
      breaker: {threshold: 2, reset: 5s, probes: 2, backoff: 50ms, backoff_max: 1s}
      rules:
        - {when: {metric: probe.*, labels: {probe: x*}}, keep: true}
        - {when: {metric: probe.response}, every: 10s, by: [node, labels.probe], late: 5s}
    - {type: arrow, path: m.arrow, spill: /fast, overflow: sample, sample_one_in: 5, rules: [{one_in: 3}, {rename: m, when: {node: n1}}]}
  routes: [{when: {kind: counter, worker: "", phase: p*}, to: [table, jsonl]}]
  default: [arrow]
  drain: 10s
plan:
  phase: all
  sequence:
    - CpuLoad: {fraction: {sine: {low: 10%, high: 60%, period: 20s}}, mode: host_total, kernel: float, cores: 2}
      for: 1m
      targets: {names: [n1]}
      tolerance: 7.5%
    - pause: 500ms
    - together:
        - MemoryPressure: {fraction: 25%}
          for: 1m30s
          phase: fill
        - DiskFill: {bytes: {steps: {levels: [0B, 1MiB, 64KiB], each: 2s}}, dir: /tmp, reserve: 2GiB}
          for: 10s
"""


def test_every_key_reads_into_the_python_twin():
    """The document and the Python expression are the same value."""
    twin = Scenario(
        name="full",
        description="every key once",
        seed=9,
        targets=Targets(role="worker", labels={"zone": "a"}, fraction=0.5, choice="seeded"),
        budget=text.load(FULL).budget,
        profile="conservative",
        limits=LimitOverrides(memory_fraction=0.4, cpu_busy_for_s=3, stale_s=1),
        on_node_lost="continue",
        hypotheses=(
            Threshold("host.memory.available", "min", ">=", 128 << 20, node="n1", when="after", name="t"),
            Threshold("dose.achieved", "max", "<", 64 << 20, unit="bytes"),
            Threshold("probe.failures", "sum", "<=", 3, labels={"reason": "timeout"}),
            ActorProbe(0.25, rate_hz=20, timeout_s=3, target="head", stat="p50", op="<", errors_fraction_max=0.01, name="p"),
        ),
        metrics=text.load(FULL).metrics,
        exporters=text.load(FULL).exporters,
        plan=sequence(
            hold(
                CpuLoad(shapes.Sine(0.1, 0.6, 20), mode="host_total", kernel="float", cores=2),
                60,
                targets=Targets(names=("n1",)),
                tolerance=0.075,
            ),
            pause(0.5),
            together(
                hold(MemoryPressure(fraction=0.25), 90, phase="fill"),
                hold(DiskFill(bytes=shapes.Steps((0, 1 << 20, 1 << 16), 2), dir="/tmp", reserve_bytes=2 << 30), 10),
            ),
            phase="all",
        ),
    )
    assert text.load(FULL) == twin
    assert (twin.budget.memory_bytes_max, twin.budget.duration_s_max, twin.exporters.prometheus.port) == (2 << 30, 600.0, 9464)


@pytest.mark.parametrize("document", [FULL, *(text.dump(get(name)) for name in NAMES)])
def test_reading_and_writing_is_a_fixed_point(document):
    """YAML -> Scenario -> YAML is canonical, and writing what was read again changes no byte."""
    scenario = text.load(document)
    canonical = text.dump(scenario)
    assert text.load(canonical) == scenario
    assert text.dump(text.load(canonical)) == canonical
    assert text.from_data(json.loads(json.dumps(text.to_data(scenario)))) == scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario
    assert hash(scenario) == hash(text.load(canonical))


@pytest.mark.parametrize("document", [FULL, *(text.dump(get(name)) for name in NAMES)])
def test_documents_fit_the_json_schema(document):
    """What reads as a scenario validates against the schema, as data."""
    schema = text.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(json.dumps(text.to_data(text.load(document))))
    jsonschema.Draft202012Validator(schema).validate(data)


@pytest.mark.parametrize(
    "change",
    [
        {"sed": 1},
        {"version": 2},
        {"seed": -1},
        {"profile": "brave"},
        {"plan": {"pause": "1s", "for": "1s"}},
        {"plan": {"CpuLoad": {"fraction": 1.5}, "for": "1s"}},
    ],
)
def test_the_json_schema_refuses_what_the_reader_refuses(change):
    """A document that does not read fails the schema as well."""
    data = {**text.to_data(get("burst")), **change}
    with pytest.raises(InputError):
        text.from_data(data)
    assert not jsonschema.Draft202012Validator(text.json_schema()).is_valid(data)


def test_a_number_where_a_shape_may_stand_is_a_constant():
    """Equal meaning is equal value."""
    assert CpuLoad(0.5) == CpuLoad(shapes.Constant(0.5))
    assert MemoryPressure(bytes=1 << 20) == MemoryPressure(bytes=shapes.Constant(1 << 20))


def test_every_field_of_every_record_is_in_its_table():
    """No field of the model can be forgotten in the document's form."""
    for record in (form.TARGETS, form.BUDGET, form.LIMITS, form.METRICS, form.PROMETHEUS, form.EXPORTERS, form.SCENARIO, form.PROBE):
        assert {item.attribute for item in record.table} == {item.name for item in fields(record.cls)}, record.cls
    for name, record in form.SIMULATORS.items():
        assert {item.attribute for item in record.table} == {item.name for item in fields(loads.KINDS[name])}
    assert {item.key for item in form.THRESHOLD.table} == {item.name for item in fields(Threshold)}


def test_simulators_and_their_options_are_those_of_the_registry():
    """A simulator that can be written can run, and each option that travels is known to its record."""
    assert set(loads.KINDS) == set(REGISTRY)
    for load in (CpuLoad(0.5), CpuLoad(0.5, cores=2), MemoryPressure(fraction=0.1), DiskFill(bytes=1), DiskFill(fraction=0.1, dir="/x")):
        record = REGISTRY[type(load).__name__]
        assert load.unit in record.units
        record.resolve_options(load.options())


def test_settings_change_the_canonical_document():
    """--set reaches keys, list items, shapes, and keys that stand at their default."""
    burst = get("burst")
    changed = text.apply_settings(
        burst,
        [
            "plan.together.0.CpuLoad.fraction=30%",
            "plan.together.1.for=20s",
            "budget.nodes_max=2",
            "hypotheses.1.actor_probe.value=500ms",
            "targets={labels: {zone: b}}",
            "seed=5",
        ],
    )
    assert changed.plan.parts[0].simulator.shape == shapes.Constant(0.3)
    assert (changed.plan.parts[1].for_s, changed.budget.nodes_max, changed.hypotheses[1].value_s, changed.seed) == (20.0, 2, 0.5, 5)
    assert changed.targets == Targets(labels={"zone": "b"})
    assert text.apply_settings(burst, []) == burst


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("plan", "expected PATH=VALUE"),
        ("=3", "expected PATH=VALUE"),
        ("plan..for=3s", "expected PATH=VALUE"),
        ("seed=[", "not YAML"),
        ("seed=", "empty"),
        ("seed=&a 3", "anchors"),
        ("sede=3", "did you mean 'seed'"),
        ("seed.x=3", "has no parts"),
        ("plan.together.9.for=3s", "no index of a list of 3"),
        ("plan.together.x.for=3s", "no index"),
        ("plan.together.0.CpuLoad.fraction=160%", "more than 100%"),
        ("plan.together.0.CpuLod.fraction=60%", "did you mean 'CpuLoad'"),
        ("version=2", "not supported"),
    ],
)
def test_bad_settings_say_what_is_wrong(setting, words):
    """A bad --set is an input error that quotes it."""
    with pytest.raises(InputError) as caught:
        text.apply_settings(get("burst"), [setting])
    assert words in str(caught.value)
    assert "--set" in str(caught.value)


def test_files_load_by_their_suffix(tmp_path):
    """A YAML file and a Python file with the same scenario give the same value."""
    (tmp_path / "a.yaml").write_text(FULL)
    (tmp_path / "b.py").write_text("from scenarios.catalogue.burst import scenario as theirs\nscenario = theirs\n")
    assert text.load_file(tmp_path / "a.yaml") == text.load(FULL)
    assert text.load_file(str(tmp_path / "b.py")) == get("burst")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1", "found nothing"),
        ("scenario = {}", "found a dict"),
        ("scenario = (", "b.py:1:12: SyntaxError"),
        ("\nimport nowhere_at_all", "b.py:2: ModuleNotFoundError"),
        ("raise SystemExit(0)", "b.py:1: SystemExit"),
        ("from scenarios import *\nscenario = Scenario('x', hold(CpuLoad(1.5), 3))", "b.py:2: CpuLoad.fraction must be"),
    ],
)
def test_bad_python_files_name_the_line(tmp_path, code, words):
    """A scenario file in Python that does not give a scenario is an input error with its line."""
    (tmp_path / "b.py").write_text(code)
    with pytest.raises(InputError) as caught:
        text.load_file(tmp_path / "b.py")
    assert words in str(caught.value)


def test_a_count_is_written_as_a_whole_number():
    """What a count was given as in Python, 8 or 8.0, a level or a shape of levels, is a whole number in the text, which reads back."""
    for count in (8, 8.0, shapes.Ramp(start=2.0, end=8.0, over_s=1.0)):
        made = Scenario(name="counts", plan=hold(loads.LockContention(count=count), for_s=5.0))
        written = text.dump(made)
        assert "8.0" not in written
        assert text.load(written) == made


def test_the_catalogue_describes_itself():
    """Each catalogue scenario says in its docstring what holding proves; another name offers the nearest."""
    assert all("Holding proves" in words for words in describe().values())
    assert all(get(name).name == name for name in NAMES)
    with pytest.raises(InputError, match="did you mean 'burst'"):
        get("brust")


def test_burst_stays_within_its_promise():
    """burst lasts 30 to 40 s, asks at most 60 % of CPU, and has a hypothesis of each kind."""
    burst = get("burst")
    peaks = [part.simulator.shape.peak(part.for_s) for part in burst.plan.parts]
    assert 30 <= burst.plan.duration_s <= 40
    assert peaks[0] <= 0.6
    assert burst.plan.parts[0].simulator.mode == "host_total"
    assert [type(item) for item in burst.hypotheses] == [Threshold, ActorProbe]


def test_scenarios_load_without_ray():
    """Importing and reading scenarios loads neither Ray nor numba."""
    code = "import sys, scenarios.plan, scenarios.catalogue as c; c.get('burst'); print([m for m in ('ray', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_example_reads():
    """The example file is a valid scenario."""
    assert text.load_file(ROOT / "examples" / "custom.yaml").name == "custom"


def test_a_changed_field_is_written():
    """Whatever differs from its default is in the document."""
    assert "on_node_lost: continue" in text.dump(replace(get("burst"), on_node_lost="continue"))


def test_the_reference_page_follows_from_the_tables():
    """docs/reference/scenario.md is what the tables say (write it again with `scenarios.form.reference()`)."""
    assert (ROOT / "docs" / "reference" / "scenario.md").read_text() == form.reference()


def test_a_memory_storm_is_safe_on_any_node():
    """A minute of six kinds of memory load, at most 240 MiB and a tenth of the cores, without what not every node has; either spelling."""
    storm = get("memory_storm")
    assert storm is get("memory-storm")
    assert storm.plan.duration_s == 60.0
    made = resolve(storm, (NodeSpec("n1"),))
    capacity = Capacity(2.0, 2 << 30, 10 << 30)
    for at_s in range(60):
        now = [one for one in made.operations if one.start_s <= at_s < one.start_s + one.duration_s]
        assert sum(peak_amounts(one, capacity).memory_bytes for one in now) <= 240 << 20
        assert sum(peak_amounts(one, capacity).cpu_cores for one in now) <= 0.1 * capacity.cpu_cores
    assert {one.kind for one in made.operations} == {"MemoryPressure", "MemoryFragment", "MemoryAccess", "VmPressure"}
    assert {one.shape["kind"] for one in made.operations if one.kind == "MemoryPressure"} == {"ramp", "sawtooth", "leak"}
