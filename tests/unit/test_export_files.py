"""File destinations: what they write reads back equal, is whole or repaired, and is untouched by failures."""

from __future__ import annotations

import csv
import errno
import gc
import io
import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from actors.errors import HarnessError, InputError
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.exporters import arrow_file, destinations, files
from cluster.exporters.arrow_file import ArrowFile, ParquetFile
from cluster.exporters.base import RejectedError, UnfinishedError
from cluster.exporters.context import EXPORTED
from cluster.exporters.csv_file import CsvFile, CsvForm, NewLabel, whole_records
from cluster.exporters.files import AppendFile, PendingFile, last_line_end, sweep
from cluster.exporters.forms import FORMS, write_file
from cluster.exporters.json_file import JsonArray, JsonForm, JsonLines
from cluster.exporters.text import NonFinite, TextForm, TimeForm
from cluster.exporters.wal import Sync
from cluster.metrics.windows import METRICS, Row, metrics_batch
from scenarios.exporters import FORMAT_OF, NEW_LABELS, NON_FINITE, SYNCS, TIMES, Destination, Format
from tests.support.sinks import CONTEXT, START_S, numbered

GOLDEN = Path(__file__).parents[1] / "golden"
INF = math.inf
SOME = metrics_batch(
    [
        Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", 'a "b",\nc'),), 3, 3.0, last=12.0),
        Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "", (), 2, 1.0 / 3, -0.0, INF, math.nan),
        Row(
            "probe.response", Kind.HISTOGRAM, "seconds", "w", "ü", (("probe", "x"),), 1, 0.5, 0.5, 0.5, digest=Histogram.of([0.5]).encode()
        ),
    ],
    node="n1",
    start_ns=START_S * 10**9 + 123_456_000,
    window_s=1.0,
)


def golden(name: str, found: bytes) -> None:
    """Compare with a file of tests/golden; `UPDATE_GOLDEN=1` writes it anew."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(found)
    assert found == path.read_bytes(), f"{path} is not what is written; UPDATE_GOLDEN=1 writes it anew"


# One golden file for the plain form of a type and for each of its options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "export.json": ("json", {}),
    "export.unix_ms.json": ("json", {"time": "unix_ms"}),
    "export.unix_s.json": ("json", {"time": "unix_s"}),
    "export.decimals.json": ("json", {"decimals": 2}),
    "export.non_finite.json": ("json", {"non_finite": "null"}),
    "export.digests.json": ("json", {"digests": True}),
    "export.nulls.json": ("json", {"nulls": False}),
    "export.sorted.json": ("json", {"sort_keys": True}),
    "export.indent.json": ("json", {"indent": 2}),
    "export.jsonl": ("jsonl", {}),
    "export.csv": ("csv", {}),
    "export.unix_ms.csv": ("csv", {"time": "unix_ms"}),
    "export.unix_s.csv": ("csv", {"time": "unix_s"}),
    "export.decimals.csv": ("csv", {"decimals": 3}),
    "export.non_finite.csv": ("csv", {"non_finite": "null"}),
    "export.digests.csv": ("csv", {"digests": True}),
    "export.separator.csv": ("csv", {"separator": ";"}),
    "export.quoted.csv": ("csv", {"quote_all": True}),
    "export.crlf.csv": ("csv", {"line_end": "crlf"}),
    "export.labels.csv": ("csv", {"labels": "json"}),
    "export.rest.csv": ("csv", {"new_label": "rest"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_looks_as_it_did(tmp_path: Path, name: str) -> None:
    """What a scenario says of its format is in force; all parse, hold every row, and CSV records have the header's width."""
    kind, options = FORMATS[name]
    sink = destinations.make(Destination(kind, "x", format=Format(**options)), tmp_path / "x")
    sink.write(CONTEXT.on(SOME))
    sink.close()
    found = (tmp_path / "x").read_bytes()
    if kind == "csv":
        records = list(csv.reader(io.StringIO(found.decode(), newline=""), delimiter=options.get("separator", ",")))
        assert [len(record) for record in records] == [len(records[0])] * 4
    else:
        documents = [found] if kind == "json" else found.splitlines()
        parsed = [json.loads(one, parse_constant=lambda word: pytest.fail(f"{word} is no JSON")) for one in documents]
        assert len(parsed[0] if kind == "json" else parsed) == 3
    golden(name, found)


def test_each_option_has_a_golden_file() -> None:
    """None is forgotten above; the words of a scenario are those of the files; a batch with an unknown label can be rejected as well."""
    shown: dict[str, set[str]] = {"json": set(), "csv": {"new_label"}}
    for kind, options in FORMATS.values():
        shown.setdefault(kind, set()).update(options)
    assert shown["json"] == set(FORMAT_OF["json"]) > set(FORMAT_OF["jsonl"])
    assert shown["csv"] == set(FORMAT_OF["csv"])
    for words, known in ((TIMES, TimeForm), (NON_FINITE, NonFinite), (NEW_LABELS, NewLabel), (SYNCS, Sync)):
        assert set(words) == {one.value for one in known}


def test_non_finite_values_follow_the_rule(tmp_path: Path) -> None:
    """NaN and infinities are text, null is absence, and -0.0 keeps its sign."""
    sink = JsonLines(tmp_path / "x.jsonl")
    sink.write(CONTEXT.on(SOME))
    sink.close()
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[1])
    assert (row["last"], row["max"], row["p50"], row["sum"]) == ("NaN", "Infinity", None, 1.0 / 3)
    assert math.copysign(1, row["min"]) == -1


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_every_kind_reads_back_equal(tmp_path: Path, kind: str, rows: int) -> None:
    """Empty, one and many rows; the typed kinds give the very table, digests included; each row of each kind says whose it is."""
    path, form = tmp_path / f"x{FORMS[kind].suffix}", FORMS[kind]
    batches = [numbered(first, min(300, rows - first)) for first in range(0, rows, 300)]
    assert write_file(form, path, batches, CONTEXT) == path.stat().st_size
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    if kind in ("parquet", "arrow"):
        found = pq.read_table(path) if kind == "parquet" else pa.ipc.open_file(path).read_all()
        assert found.schema.remove_metadata().equals(EXPORTED)
        assert found.select(METRICS.names).equals(pa.Table.from_batches(batches, METRICS))
        got = found.to_pylist()
    elif kind == "csv":
        got = list(csv.DictReader(io.StringIO(path.read_text())))
    else:
        got = json.loads(path.read_text()) if kind == "json" else list(map(json.loads, path.read_text().splitlines()))
    assert [float(row["last"]) for row in got] == list(range(rows))
    assert {(row["run"], row["scenario"], row["node"]) for row in got} == ({("run-1", "small", "n1")} if rows else set())


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(TEXT, st.dictionaries(st.sampled_from(["probe", "reason", "späte", 'q"u,o\nte']), TEXT, max_size=3)), max_size=12),
    st.integers(1, 4),
)
def test_csv_holds_any_text_and_its_header_always_fits(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], cut: int) -> None:
    """Random text with quotes, separators, newlines and Unicode comes back; labels that appear later widen header and rows alike."""
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    for first in range(0, len(rows), cut):  # a new life for each batch: it goes on under the header that is there
        sink = CsvFile(path)
        made = [Row("m", Kind.GAUGE, "", worker, "p", tuple(labels.items()), 1) for worker, labels in rows[first : first + cut]]
        sink.write(CONTEXT.on(metrics_batch(made, node="n", start_ns=0, window_s=1.0)))
        sink.close()
    if not rows:
        return
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.reader(file))
    head = records[0]
    assert [len(record) for record in records] == [len(head)] * (len(rows) + 1)
    assert len(set(head)) == len(head)
    for record, (worker, labels) in zip(records[1:], rows, strict=True):
        found = dict(zip(head, record, strict=True))
        assert found["worker"] == worker
        names = {name.removeprefix("label.") for name in head if name.startswith("label.")}
        assert {name: found[f"label.{name}"] for name in names} == {name: labels.get(name, "") for name in names}
        assert set(labels) <= names


def test_new_labels_go_where_the_form_says(tmp_path: Path) -> None:
    """REST collects them in one column, REFUSE rejects their batch and leaves the file alone."""
    rest = CsvFile(tmp_path / "rest.csv", CsvForm(new_label=NewLabel.REST))
    rest.write(CONTEXT.on(SOME))
    rest.close()
    with (tmp_path / "rest.csv").open(newline="") as file:
        assert json.loads(next(iter(csv.DictReader(file)))["other_labels"]) == {"probe": 'a "b",\nc'}
    refuse = CsvFile(tmp_path / "refuse.csv", CsvForm(new_label=NewLabel.REFUSE))
    refuse.write(CONTEXT.on(numbered(0, 2)))
    before = (tmp_path / "refuse.csv").read_bytes()
    with pytest.raises(RejectedError, match="labels probe"):
        refuse.write(CONTEXT.on(SOME))
    refuse.close()
    assert (tmp_path / "refuse.csv").read_bytes() == before


def test_csv_refuses_a_file_of_another_form(tmp_path: Path) -> None:
    """An existing file with other columns is an error that names them, and stays as it is."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has the columns a, b"):
        CsvFile(path).open()
    assert path.read_text() == "a,b\n1,2\n"


def test_csv_of_an_older_version_goes_on_under_its_header(tmp_path: Path) -> None:
    """A run whose file was begun without run and scenario gets its late rows in the columns that are there; JSON lines just go on."""
    path = tmp_path / "x.csv"
    path.write_text("time,window_s,metric,kind,unit,node,worker,phase,count,sum,min,max,last,p50,p90,p99,p999,label.probe\n")
    sink = CsvFile(path)
    sink.write(CONTEXT.on(SOME))
    sink.close()
    rows = list(csv.DictReader(path.open(newline="")))
    assert [(row["metric"], row["label.probe"], None in row) for row in rows] == [
        ("probe.requests", 'a "b",\nc', False),
        ("host.cpu.busy", "", False),
        ("probe.response", "x", False),
    ]
    older = tmp_path / "x.jsonl"
    older.write_text('{"time": "2026-01-01T00:00:00.000000Z", "metric": "m"}\n')
    lines = JsonLines(older)
    lines.write(CONTEXT.on(SOME))
    lines.close()
    assert [json.loads(line).get("run") for line in older.read_text().splitlines()] == [None, "run-1", "run-1", "run-1"]


@settings(max_examples=80)
@given(st.data())
def test_a_torn_text_file_is_cut_to_whole_records(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut anywhere, a file goes on behind its last whole record; nothing whole is lost and nothing torn stays."""
    kind = data.draw(st.sampled_from(["csv", "jsonl"]))
    path = tmp_path_factory.mktemp("torn") / f"x.{kind}"

    def make() -> CsvFile | JsonLines:
        return CsvFile(path, CsvForm(labels=("probe",))) if kind == "csv" else JsonLines(path)

    sink = make()
    for _ in range(3):
        sink.write(CONTEXT.on(SOME))
    sink.close()
    whole = path.read_bytes()
    find = whole_records if kind == "csv" else last_line_end
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    end = find(io.BytesIO(whole[:cut]))
    assert whole[:end] == whole[: max([at for at in range(cut + 1) if find(io.BytesIO(whole[:at])) == at])]
    sink = make()
    sink.write(CONTEXT.on(SOME))
    sink.close()
    assert sink.file.cut_bytes == cut - end
    text = path.read_bytes()
    assert text.startswith(whole[:end])
    rows = (
        list(csv.DictReader(io.StringIO(text.decode(), newline=""))) if kind == "csv" else [json.loads(line) for line in text.splitlines()]
    )
    assert [row["metric"] for row in rows][-3:] == SOME.column("metric").to_pylist()


@pytest.mark.parametrize("kind", [CsvFile, JsonLines])
@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(b"name,age\nann,7\nbob,", id="other-columns-and-no-final-newline"),
        pytest.param(b"a letter without any newline", id="one-line"),
        pytest.param(b"times", id="one-word"),
        pytest.param(b"\xff\xfe\0\n\0x", id="no-text"),
        pytest.param(b'"' * 7 + b"\nx", id="quotes-only"),
        pytest.param(b"x" * 200_000 + b"\n1", id="a-field-beyond-the-reader"),
        pytest.param(b'{"somebody": "else\'s document without a final newline"}', id="a-json-document"),
    ],
)
def test_a_foreign_file_stays_as_it_is(tmp_path: Path, foreign: bytes, kind: type[CsvFile | JsonLines]) -> None:
    """A file of somebody else is refused however often it is tried, keeps every byte, and is not held open."""
    path = tmp_path / "x"
    path.write_bytes(foreign)
    sink = kind(path)
    for _ in range(3):
        with pytest.raises(InputError):
            sink.open()
        with pytest.raises(InputError) as caught:
            sink.write(CONTEXT.on(SOME))
        assert "use another file" in caught.value.hint
    assert path.read_bytes() == foreign
    assert path not in {one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()}
    sink.close()


def test_a_torn_tail_is_gone_before_anything_is_written(tmp_path: Path) -> None:
    """A tail longer than what is written next leaves nothing behind it."""
    (tmp_path / "x").write_bytes(b"one\n" + bytes(1000))
    file = AppendFile(tmp_path / "x", last_line_end)
    file.open()
    assert ((tmp_path / "x").read_bytes(), file.cut_bytes) == (b"one\n", 1000)
    file.write(b"two\n")
    file.close()
    assert (tmp_path / "x").read_bytes() == b"one\ntwo\n"


APPENDING: list[Callable[[Path], CsvFile | JsonLines]] = [CsvFile, JsonLines]


@pytest.mark.parametrize("make", APPENDING)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_nothing_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], CsvFile | JsonLines], code: int
) -> None:
    """A disk that refuses half way: the file is as before, the sink says it is not well, and the same batch goes in once later."""
    sink = make(tmp_path / "x")
    sink.write(CONTEXT.on(numbered(0, 5)))
    before = (tmp_path / "x").read_bytes()
    real = os.pwrite
    with monkeypatch.context() as patched:

        def half(fd: int, data: memoryview, offset: int) -> int:
            real(fd, data[:30], offset)
            raise OSError(code, os.strerror(code))

        patched.setattr(files.os, "pwrite", half)
        with pytest.raises(OSError, match=os.strerror(code)):
            sink.write(CONTEXT.on(numbered(5, 5)))
    assert (tmp_path / "x").read_bytes() == before
    assert not sink.health().ok
    sink.write(CONTEXT.on(numbered(5, 5)))
    assert sink.health().ok
    sink.close()
    assert (tmp_path / "x").read_text().count("\n") - isinstance(sink, CsvFile) == 10


@pytest.mark.parametrize("make", APPENDING)
def test_a_file_that_was_deleted_is_begun_anew(tmp_path: Path, make: Callable[[Path], CsvFile | JsonLines]) -> None:
    """Rows after the deletion are in a new file, with its own header; a second writer is refused meanwhile."""
    sink = make(tmp_path / "x")
    sink.write(CONTEXT.on(numbered(0, 5)))
    with pytest.raises(HarnessError, match="by somebody else"):
        make(tmp_path / "x").open()
    (tmp_path / "x").unlink()
    sink.write(CONTEXT.on(numbered(5, 5)))
    sink.close()
    lines = (tmp_path / "x").read_text().splitlines()
    assert len(lines) - isinstance(sink, CsvFile) == 5


@pytest.mark.parametrize("make", [JsonArray, ParquetFile, ArrowFile])
def test_a_whole_file_that_cannot_be_finished_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    """An error at the end says how many rows are lost, leaves no temporary file, and the old file stands."""
    path = tmp_path / "x"
    path.write_text("old")
    sink = make(path)
    sink.write(CONTEXT.on(numbered(0, 5)))
    sink.write(CONTEXT.on(numbered(5, 5)))
    assert path.read_text() == "old"

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", refuse)
        with pytest.raises(UnfinishedError, match="No space") as raised:
            sink.close()
    assert raised.value.rows == 10
    assert [one.name for one in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"
    sink.close()
    sink.write(CONTEXT.on(numbered(10, 5)))
    sink.close()
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("kind", FORMS)
def test_a_batch_that_raises_in_mid_write_leaves_no_file(tmp_path: Path, kind: str) -> None:
    """Whatever stops the rows, there is no half-written file and no temporary one."""

    def batches() -> Any:
        yield numbered(0, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(FORMS[kind], tmp_path / "x", batches(), CONTEXT)
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    """A temporary file without an owner goes at the next start; one that is being written stays."""
    (tmp_path / ".x.json.99999.part").write_text("left")
    alive = PendingFile(tmp_path / "x.json")
    assert [one.name for one in tmp_path.iterdir()] == [alive.temporary.name]
    assert alive.temporary.stat().st_dev == alive.path.parent.stat().st_dev
    assert sweep(tmp_path / "x.json") == 0
    alive.sink.write(b"[]")
    alive.finish()
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("make", APPENDING)
def test_a_file_that_grows_is_opened_beside_nothing_left_over(tmp_path: Path, make: Callable[[Path], CsvFile | JsonLines]) -> None:
    """What a process left that died while it wrote the file anew goes when the next one opens it."""
    (tmp_path / ".x.99999.part").write_text("left")
    sink = make(tmp_path / "x")
    sink.open()
    assert [one.name for one in tmp_path.iterdir()] == ["x"]
    sink.close()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    """Three times the rows take the same memory at their peak."""
    batch = numbered(0, 500)
    write_file(FORMS[kind], tmp_path / "warm", [batch], CONTEXT)

    def peak(count: int) -> int:
        gc.collect()  # empties what the interpreter keeps of freed tuples; 4,000 rows fill it again
        tracemalloc.start()
        write_file(FORMS[kind], tmp_path / f"x{count}", (batch for _ in range(count)), CONTEXT)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(24) < 1.2 * peak(8)


def test_a_parquet_file_has_few_row_groups_however_small_its_batches(tmp_path: Path) -> None:
    """What the writer keeps for each group until the end follows the rows, not the calls; groups hold the rows in their order."""
    sink = ParquetFile(tmp_path / "x")
    batches = [numbered(first, 30) for first in range(0, 30_000, 30)]
    for batch in batches:
        sink.write(CONTEXT.on(batch))
    sink.close()
    found = pq.read_table(tmp_path / "x")
    assert pq.read_metadata(tmp_path / "x").num_row_groups == -(-30_000 // arrow_file.GROUP_ROWS) == 1
    assert found.select(METRICS.names).equals(pa.Table.from_batches(batches))


@pytest.mark.parametrize("bound", ["GROUP_ROWS", "GROUP_BYTES"])
def test_rows_that_wait_for_a_row_group_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """By their number and by their bytes; a failure in mid-file tells all that were taken as lost, also those that waited."""
    batch = CONTEXT.on(numbered(0, 100))
    monkeypatch.setattr(arrow_file, bound, {"GROUP_ROWS": 1000, "GROUP_BYTES": 10 * batch.nbytes}[bound])
    sink = ParquetFile(tmp_path / "x")
    before, most = pa.total_allocated_bytes(), 0
    for _ in range(55):
        sink.write(CONTEXT.on(numbered(0, 100)))
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 15 * batch.nbytes + 1_000_000  # the writer has buffers of its own
    sink.close()
    groups = pq.read_metadata(tmp_path / "x")
    assert [groups.row_group(at).num_rows for at in range(groups.num_row_groups)] == [1000] * 5 + [500]
    for _ in range(19):
        sink.write(batch)

    def refuse(_: pa.RecordBatch) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sink._writer, "write_batch", refuse)
    with pytest.raises(UnfinishedError, match="No space") as raised:
        sink.write(batch)
    assert (raised.value.rows, [one.name for one in tmp_path.iterdir()]) == (1900, ["x"])
    sink.write(batch)
    sink.close()
    assert pq.read_metadata(tmp_path / "x").num_rows == 100


def test_forms_are_checked() -> None:
    """Options out of their range are errors of the caller when the form is made."""
    for make in (
        lambda: CsvForm(separator=",,"),
        lambda: CsvForm(separator='"'),
        lambda: CsvForm(line_end="x"),
        lambda: JsonForm(indent=9),
        lambda: TextForm(decimals=16),
        lambda: JsonLines(Path("x"), JsonForm(indent=2)),
    ):
        with pytest.raises(InputError):
            make()
