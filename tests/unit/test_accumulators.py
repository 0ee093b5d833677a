from __future__ import annotations

import importlib
import logging
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clock import VirtualClock
from actors.errors import InputError
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.sketches import AccumulatorRecord, Accumulators, Batch, Bound, unpack
from cluster.metrics.sketches.builtin import RECORDS, TDigestAccumulator
from cluster.metrics.sketches.conformance import problems
from cluster.metrics.sketches.registry import GROUP
from cluster.metrics.windows import Row
from tests.support.windows import START_S, record

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-accumulator.md"
NAMES = {"count", "sum", "min_max", "last", "mean_variance", "rate", "histogram", "t_digest", "distinct", "top"}


@pytest.fixture
def known() -> Accumulators:
    return Accumulators()


def fed(record: AccumulatorRecord, *batches: Batch):
    made = record.make()
    for batch in batches:
        made.add(batch)
    return made


def answers(known: Accumulators, name: str, *batches: Batch, unit: str = "seconds") -> dict:
    record = known.find(name)
    return {key: (figure.value, figure.unit) for key, figure in record.answers(fed(record, *batches), unit).items()}


# the product's own


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_own_accumulators_keep_the_laws(record: AccumulatorRecord, known: Accumulators) -> None:
    """Each accumulator merges, travels and answers by the laws, and comes back from its envelope."""
    assert problems(record) == []
    batch = Batch.of(["a", "b", "a"]) if record.takes == "texts" else Batch.of([1.0, 2.0, 4.0], end_s=1.0)
    made = fed(record, batch)
    kind, back = unpack(record.pack(made), known)
    assert kind is record
    assert record.answers(back) == record.answers(made)


def test_own_accumulators_are_there(known: Accumulators) -> None:
    """The product's accumulators are known by name, and the page for users lists them."""
    assert set(known) == NAMES
    assert known.source("count") == "stress-cluster"
    assert set(re.findall(r"`([a-z_]+)`", PAGE.read_text())) >= NAMES


def test_figures_and_units(known: Accumulators) -> None:
    """Weighted figures are those of the repeated values, each in its unit."""
    one = Batch.of([1.0, 3.0], [3, 1], start_s=0.0, end_s=1.0)
    two = Batch.of([np.nan, 6.0], start_s=1.0, end_s=4.0)
    assert answers(known, "count", two, one) == {"count": (5, ""), "nan": (1, "")}
    assert answers(known, "sum", one, two) == {"sum": (12.0, "seconds")}
    assert answers(known, "min_max", one, two) == {"min": (1.0, "seconds"), "max": (6.0, "seconds")}
    assert answers(known, "last", two, one) == {"last": (6.0, "seconds")}
    assert answers(known, "rate", two, one, unit="bytes") == {"rate": (3.0, "bytes/second")}
    assert answers(known, "rate", one, unit="") == {"rate": (6.0, "1/second")}
    spread = answers(known, "mean_variance", one, two)
    assert spread["mean"] == (pytest.approx(2.4), "seconds")
    assert spread["variance"] == (pytest.approx(np.var([1, 1, 1, 3, 6])), "seconds^2")
    assert answers(known, "mean_variance", one, unit="ratio")["variance"][1] == "ratio"
    for name in ("histogram", "t_digest"):
        assert answers(known, name, one, two)["p50"] == (pytest.approx(1.0, rel=0.004), "seconds")


def test_small_samples_are_not_lost_beside_a_large_sum(known: Accumulators) -> None:
    """A thousand ones beside 10^16, where each by itself would be rounded off, are all in the sum, on either side of a merge."""
    kind = known.find("sum")
    ones = [Batch.of([1.0])] * 1000
    made = fed(kind, Batch.of([1e16]), *ones)
    assert made.result()["sum"] == 1e16 + 1000
    other = fed(kind, *ones, Batch.of([1e16]))
    other.merge(made)
    assert other.result()["sum"] == 2e16 + 2000


def test_nothing_gives_no_figure(known: Accumulators) -> None:
    """Without samples counts are 0, and every other figure is absent, never a number."""
    for name in NAMES:
        for figure in known.find(name).answers(known.find(name).make()).values():
            assert figure.value in (None, 0, ())


def test_estimates_say_so(known: Accumulators) -> None:
    """Approximate figures carry their bound, exact ones none."""
    values = Batch.of(np.random.default_rng(1).lognormal(size=5000))
    quantile = known.find("histogram").answers(fed(known.find("histogram"), values))["p99"]
    assert (quantile.approximate, quantile.bound) == (True, Bound("value_relative", 2.0**-8))
    rank = known.find("t_digest").answers(fed(known.find("t_digest"), values))["p50"].bound
    assert rank is not None
    assert (rank.kind, rank.size < 0.05) == ("rank", True)
    words = Batch.of([f"k{at}" for at in range(1000)])
    distinct = known.find("distinct").answers(fed(known.find("distinct"), words))["distinct"]
    assert distinct.value == pytest.approx(1000, rel=distinct.bound.size)
    assert distinct.bound.size < 0.02
    top = known.find("top").answers(fed(known.find("top"), words, Batch.of(["k7"], [500])))["top"]
    assert top.value[0] == ("k7", top.value[0][1], 501)
    assert 501 - top.bound.size <= top.value[0][1] <= 501
    assert not known.find("sum").answers(fed(known.find("sum"), values))["sum"].approximate


@pytest.mark.parametrize(
    ("value", "size"), [(1e-12, 1.0), (0.5, 2.0**-8), (2.0**40, 2.0**6), (float("inf"), float("inf"))], ids=["tiny", "usual", "huge", "inf"]
)
def test_the_bound_holds_past_the_range_of_the_histogram(known: Accumulators, value: float, size: float) -> None:
    """Where a histogram's bucket is wide the bound is wide, and says so."""
    kind = known.find("histogram")
    assert kind.answers(fed(kind, Batch.of([value] * 3)))["p50"].bound == Bound("value_relative", size)


def test_adding_to_a_t_digest_sorts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples wait until there are many or somebody asks; how they were cut into batches changes no count."""
    calls: list[int] = []
    fold = TDigestAccumulator._fold
    monkeypatch.setattr(TDigestAccumulator, "_fold", lambda self: (calls.append(1), fold(self))[1])
    made = TDigestAccumulator()
    for _ in range(100):
        made.add(Batch.of(np.arange(100.0)))
    assert calls == []
    assert made.result()["count"] == 10_000
    made.result()
    assert calls == [1]
    for _ in range(300):
        made.add(Batch.of(np.arange(100.0)))
    assert calls == [1, 1]
    assert made.result()["count"] == 40_000


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), min_size=1, max_size=5), st.randoms())
def test_parts_in_any_order_are_the_whole(parts: list[list[float]], chance) -> None:
    """Count, extremes, histogram and newest value are the same in whatever order parts arrive; sums and spreads to rounding."""
    batches = [Batch.of(part, start_s=float(at), end_s=at + 1.0) for at, part in enumerate(parts)]
    shuffled = chance.sample(batches, len(batches))
    for kind in RECORDS:
        if kind.takes == "numbers" and kind.exact:
            one, other = fed(kind, *batches).result(), fed(kind, *shuffled).result()
            for name in one:
                first, second = one[name], other[name]
                if isinstance(first, float):
                    assert second == pytest.approx(first, rel=1e-9, abs=1e-6)
                else:
                    assert first == second


def test_bad_batches_are_refused() -> None:
    """A mixture, a backward span and a bad weight are errors."""
    with pytest.raises(InputError, match="both"):
        Batch.of(["a", 1.0])  # type: ignore[list-item]
    with pytest.raises(InputError, match="begins at 2"):
        Batch.of([1.0], start_s=2.0, end_s=1.0)
    with pytest.raises(InputError, match="whole numbers"):
        Batch.of([1.0], [0.5])


# envelopes


def test_damaged_envelopes_are_refused(known: Accumulators) -> None:
    """A flipped bit, a cut, another version of the kind, and a kind that nobody knows are errors, never another state."""
    kind = known.find("sum")
    data = kind.pack(fed(kind, Batch.of([1.0])))
    for broken in (b"", data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"XX" + data[2:]):
        with pytest.raises(ValueError, match="accumulator"):
            unpack(broken, known)
    other = AccumulatorRecord("sum", "x", "numbers", kind.figures, kind.make, kind.decode, version=2)
    with pytest.raises(InputError, match="version 1 here, got 2"):
        unpack(other.pack(kind.make()), known)
    foreign = AccumulatorRecord("summ", "x", "numbers", kind.figures, kind.make, kind.decode)
    with pytest.raises(InputError, match="did you mean 'sum'"):
        unpack(foreign.pack(kind.make()), known)


# the conformance check, on what is broken


class Total:
    """A right accumulator, to be broken by subclasses."""

    def __init__(self, total: float = 0.0) -> None:
        self.total = total

    def add(self, batch: Batch) -> None:
        held = np.isfinite(batch.numbers)
        self.total += float((batch.numbers[held] * batch.weights[held]).sum())

    def merge(self, other: Total) -> None:
        self.total += other.total

    def result(self) -> dict:
        return {"total": self.total}

    def encode(self) -> bytes:
        return struct.pack("<4sd", b"TOTA", self.total)

    @classmethod
    def decode(cls, data: bytes) -> Total:
        if data[:4] != b"TOTA" or len(data) != 12:
            raise ValueError("not a total")
        return cls(struct.unpack("<4sd", data)[1])


def kind_of(cls: type, name: str = "total", **changes) -> AccumulatorRecord:
    return AccumulatorRecord(
        **{"name": name, "summary": "x", "takes": "numbers", "figures": {"total": "same"}, "make": cls, "decode": cls.decode} | changes
    )


def broken(**methods) -> AccumulatorRecord:
    return kind_of(type("Broken", (Total,), methods))


def _tampering(self: Total, other: Total) -> None:
    self.total, other.total = self.total + other.total, 0.0


def _resetting(self: Total) -> dict:
    self.total, found = 0.0, self.total
    return {"total": found}


BROKEN: dict[str, tuple[AccumulatorRecord, str]] = {
    "one-sided merge": (broken(merge=lambda self, other: setattr(self, "total", self.total - other.total)), "same both ways"),
    "merge that forgets": (broken(merge=lambda self, other: None), "merged parts"),
    "mean of means": (broken(merge=lambda self, other: setattr(self, "total", (self.total + other.total) / 2)), "groups as it likes"),
    "merge that empties": (broken(merge=_tampering), "leaves the other alone"),
    "result that resets": (broken(result=_resetting), "asking changes nothing"),
    "bytes that lose": (broken(encode=lambda self: struct.pack("<4sd", b"TOTA", round(self.total))), "bytes bring it back"),
    "bytes that are text": (broken(encode=lambda self: "text"), "bytes bring it back"),
    "decode of anything": (kind_of(Total, decode=lambda data: Total()), "bytes that are none"),
    "another figure": (broken(result=lambda self: {"sum": 1.0}), "those of the record"),
    "no figures": (kind_of(Total, figures={}), "record is whole"),
    "unknown unit": (kind_of(Total, figures={"total": "cubed"}), "record is whole"),
    "add that raises": (broken(add=lambda self, batch: 1 / 0), "ZeroDivisionError"),
    "make that raises": (kind_of(Total, make=lambda: 1 / 0), "ZeroDivisionError"),
    "figures of nothing": (kind_of(Total, figures=None), "TypeError"),
}


@pytest.mark.parametrize(("record", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_accumulator_is_refused_by_name(known: Accumulators, record: AccumulatorRecord, words: str) -> None:
    """Each broken law is found and named, and the accumulator does not come in."""
    assert problems(kind_of(Total)) == []
    assert any(words in found for found in problems(record))
    with pytest.raises(InputError, match="accumulator 'total' from here"):
        known.register(record, "here")
    assert set(known) == NAMES


def test_explicit_registration(known: Accumulators) -> None:
    """A right one is found afterwards; a name that is taken, bad, or no record is refused, and what was there stays."""
    known.register(kind_of(Total), "a notebook")
    assert known.source("total") == "a notebook"
    with pytest.raises(InputError, match="a notebook has that name already"):
        known.register(kind_of(Total))
    with pytest.raises(InputError, match="stress-cluster has that name already"):
        known.register(kind_of(Total, "sum"))
    with pytest.raises(InputError, match="a name is"):
        known.register(kind_of(Total, "My Total"))
    with pytest.raises(InputError, match="is a type"):
        known.register(Total)  # type: ignore[arg-type]
    assert set(known) == NAMES | {"total"}


# plug-ins

Install = Callable[..., None]

RIGHT = """
import struct, numpy as np
from cluster.metrics.sketches import AccumulatorRecord
class Total:
    def __init__(self, total=0): self.total = total
    def add(self, batch): self.total += int(batch.weights.sum())
    def merge(self, other): self.total += other.total
    def result(self): return {"total": self.total}
    def encode(self): return struct.pack("<4sQ", b"TOTA", self.total)
def decode(data):
    if data[:4] != b"TOTA" or len(data) != 12: raise ValueError("not a total")
    return Total(struct.unpack("<4sQ", data)[1])
def kind(name, **changes):
    return AccumulatorRecord(**{"name": name, "summary": "x", "takes": "numbers", "figures": {"total": "none"},
                                "make": Total, "decode": decode} | changes)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a distribution: its metadata and its module, found as any other is."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def make(name: str, module: str, text: str, points: dict[str, str], version: str = "1.0") -> None:
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[{GROUP}]", *(f"{point} = {value}" for point, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        modules.append(module)
        importlib.invalidate_caches()

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def test_an_installed_plug_in_is_used(known: Accumulators, install: Install) -> None:
    """A package that is installed brings its accumulator; loading again changes nothing."""
    install("nice", "nice_plugin", RIGHT + 'RECORD = kind("nice")', {"nice": "nice_plugin:RECORD"})
    assert known.load() == []
    assert known.load() == []
    assert known.source("nice") == "nice 1.0"
    assert known.find("nice").answers(fed(known.find("nice"), Batch.of([1.0], [4])))["total"].value == 4


BAD = {
    "missing module": ("x = 1", "gone_plugin:RECORD", "No module named 'gone_plugin'"),
    "missing attribute": ("x = 1", "bad_plugin:RECORD", "AttributeError"),
    "syntax": ("def", "bad_plugin:RECORD", "SyntaxError"),
    "raises": ("raise OSError('no licence')", "bad_plugin:RECORD", "no licence"),
    "exits": ("raise SystemExit(3)", "bad_plugin:RECORD", "SystemExit"),
    "no record": ("RECORD = 7", "bad_plugin:RECORD", "is a int"),
    "another name": (RIGHT + 'RECORD = kind("other")', "bad_plugin:RECORD", "its record is named 'other'"),
    "broken law": (RIGHT + 'RECORD = kind("bad", decode=lambda data: Total())', "bad_plugin:RECORD", "merging is the same both ways"),
}


@pytest.mark.parametrize(("text", "value", "words"), BAD.values(), ids=BAD)
def test_a_bad_plug_in_takes_nothing_down(
    known: Accumulators, install: Install, caplog: pytest.LogCaptureFixture, text: str, value: str, words: str
) -> None:
    """What cannot be used is refused with its name and reason, once in the log; others and the product's own work."""
    install("bad", "bad_plugin", text, {"bad": value})
    install("nice", "nice_plugin", RIGHT + 'RECORD = kind("nice")', {"nice": "nice_plugin:RECORD"})
    with caplog.at_level(logging.WARNING):
        (refused,) = known.load()
        known.load()
    assert (refused.name, refused.source) == ("bad", "bad 1.0")
    assert words in refused.reason
    assert len(caplog.records) == 1
    assert "'bad' from bad 1.0 is not used" in caplog.text
    assert set(known) == NAMES | {"nice"}
    with pytest.raises(InputError, match=r"'bad' was refused: bad 1\.0"):
        known.find("bad")


def test_conflicting_plug_ins_are_refused(known: Accumulators, install: Install) -> None:
    """Two packages with one name are both refused, and so is one that takes a name of the product."""
    for name in ("one", "two"):
        install(name, f"{name}_plugin", RIGHT + 'RECORD = kind("same")', {"same": f"{name}_plugin:RECORD"})
    install("thief", "thief_plugin", RIGHT + 'RECORD = kind("sum")', {"sum": "thief_plugin:RECORD"})
    assert {(one.name, one.source) for one in known.load()} == {("same", "one 1.0"), ("same", "two 1.0"), ("sum", "thief 1.0")}
    assert set(known) == NAMES
    with pytest.raises(InputError, match=r"one 1\.0 and two 1\.0 offer the same name"):
        known.find("same")
    assert known.source("sum") == "stress-cluster"


# the page for users


def blocks() -> dict[str, str]:
    """Return the page's code by file name."""
    found = re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def test_the_page_works_as_written(tmp_path: Path, install: Install, known: Accumulators) -> None:
    """The page's package is installed, its test passes, and its last program, in a process of its own, prints what it says."""
    code = blocks()
    assert set(code) == {"slow_share.py", "pyproject.toml", "test_slow_share.py", "use.py"}
    project = tomllib.loads(code["pyproject.toml"])["project"]
    install(project["name"], "slow_share", code["slow_share.py"], project["entry-points"][GROUP], project["version"])
    assert "slow_share" in {point.name for point in entry_points(group=GROUP)}
    scope: dict = {}
    exec(compile(code["test_slow_share.py"], "test_slow_share.py", "exec"), scope)
    scope["test_slow_share_keeps_the_laws"]()
    assert known.load() == []
    (tmp_path / "use.py").write_text(code["use.py"])
    path = ":".join([str(tmp_path), *sys.path])
    said = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    (want,) = re.findall(r"print\(.*# (\S+)", code["use.py"])
    assert float(said.stdout) == pytest.approx(float(want))


def test_a_plug_in_of_another_process_merges_here(tmp_path: Path, install: Install, known: Accumulators) -> None:
    """What a worker process accumulated with a plug-in travels as bytes, merges here, and answers for all samples."""
    code = blocks()
    install("slow-share", "slow_share", code["slow_share.py"], {"slow_share": "slow_share:RECORD"})
    known.load()
    kind = known.find("slow_share")
    worker = (
        "import sys; from cluster.metrics.sketches import Accumulators, Batch\n"
        "known = Accumulators(); known.load(); kind = known.find('slow_share'); made = kind.make()\n"
        "made.add(Batch.of([0.1, 0.9], [3, 5])); sys.stdout.buffer.write(kind.pack(made))\n"
    )
    path = ":".join([str(tmp_path), *sys.path])
    data = subprocess.run([sys.executable, "-c", worker], env={"PYTHONPATH": path}, capture_output=True, check=True).stdout
    whole = fed(kind, Batch.of([0.7, 0.2]))
    whole.merge(unpack(data, known)[1])
    assert {name: figure.value for name, figure in kind.answers(whole).items()} == {"slow_share": 0.6, "count": 10}


# a run's windows


@pytest.fixture
def aggregator(tmp_path: Path) -> Aggregator:
    made = Aggregator("run-1", tmp_path / "run-1", VirtualClock())
    made.push("n1", "a", [record("n1", at) for at in range(1, 11)])
    return made


def test_windows_of_a_run_through_accumulators(aggregator: Aggregator) -> None:
    """Counters give increases, gauges means, histograms their samples; the same before and after settling."""
    for _ in range(2):
        assert aggregator.answers.summarise("probe.requests", "sum")["sum"].value == 55.0
        assert aggregator.answers.summarise("probe.requests", "rate")["rate"].value == 5.5
        assert aggregator.answers.summarise("host.cpu.busy", "last", between=(START_S, START_S + 5))["last"].value == 0.04
        found = aggregator.answers.summarise("probe.response", "t_digest", node="n1")
        assert (found["count"].value, found["p50"].unit) == (10, "seconds")
        assert found["p50"].value == pytest.approx(0.0055, rel=0.004)
        assert aggregator.answers.summarise("probe.response", "count", node="n7")["count"].value == 0
        assert aggregator.answers.summarise("probe.requests", "top", label="probe")["top"].value == (("x", 55, 55),)
        assert round(aggregator.answers.summarise("probe.response", "distinct", label="probe")["distinct"].value) == 1
        aggregator.finish()


def test_texts_count_as_often_as_counters_rose(aggregator: Aggregator) -> None:
    """The top list of a counter's label goes by increases, over nodes."""
    rows = [Row("probe.failures", Kind.COUNTER, "", "w", "", (("probe", "x"), ("reason", reason)), 1, count) for reason, count in REASONS]
    aggregator.push("n2", "b", [record("n2", 1, rows=rows)])
    aggregator.push("n3", "c", [record("n3", 1, rows=rows[:1])])
    found = aggregator.answers.summarise("probe.failures", "top", label="reason")
    assert found["top"].value == (("timeout", 18, 18), ("refused", 4, 4))
    assert found["count"].value == 22


REASONS = (("timeout", 9.0), ("refused", 4.0))


def test_wrong_questions_to_accumulators_are_refused(aggregator: Aggregator) -> None:
    """An unknown accumulator, metric or label, and a label for numbers, are errors that say what is known."""
    with pytest.raises(InputError, match="did you mean 't_digest'"):
        aggregator.answers.summarise("probe.response", "tdigest")
    with pytest.raises(InputError, match="unknown metric"):
        aggregator.answers.summarise("probe.responze", "sum")
    with pytest.raises(InputError, match="declared: probe"):
        aggregator.answers.summarise("probe.response", "top", label="pod")
    with pytest.raises(InputError, match="takes numbers"):
        aggregator.answers.summarise("probe.response", "sum", label="probe")
