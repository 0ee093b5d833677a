"""Files of exporters whose process is killed with SIGKILL: what is lost of what waits, and what a reader sees of files that appear."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.exporters.csv_file import CsvFile
from cluster.exporters.files import rotated
from cluster.exporters.json_file import JsonArray
from tests.support.killing import ROOT, killed
from tests.support.sinks import CONTEXT, numbered

QUEUE = 60

CHILD = """
import asyncio, sys
from pathlib import Path
from cluster.exporters.csv_file import CsvFile
from cluster.exporters.json_file import JsonLines
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from tests.support.sinks import numbered

folder, first, queue = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

async def main():
    pipeline = ExportPipeline()
    limits = Limits(Overflow.BLOCK, queue_rows=queue, batch_rows=20, batch_age_s=0.02)
    pipeline.add("csv", CsvFile(folder / "x.csv"), limits)
    pipeline.add("jsonl", JsonLines(folder / "x.jsonl"), limits)
    print("ready", flush=True)
    for at in range(first, 10**9, 3):
        await pipeline.export(numbered(at, 3))
        print(at + 2, flush=True)

asyncio.run(main())
"""


def rows_in(path: Path) -> list[int]:
    """Return which rows a text file holds; raises when it is not whole."""
    text = path.read_text()
    assert text.endswith("\n"), f"{path} ends in the middle of a row"
    if path.suffix == ".csv":
        records = list(csv.reader(text.splitlines()))
        assert {len(record) for record in records} == {len(records[0])}
        return [int(float(record[records[0].index("last")])) for record in records[1:]]
    return [int(row["last"]) for row in (json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines()))]


def test_a_kill_takes_no_more_than_one_buffer(tmp_path: Path) -> None:
    """Of rows that `export` returned for, those that are not in a file were the last ones, and no more than its queue holds; none twice."""
    chance, first = random.Random(5), 0
    kept: dict[str, list[int]] = {"x.csv": [], "x.jsonl": []}
    for _ in range(3):
        some = chance.randrange(QUEUE, 4 * QUEUE)
        last = killed(
            CHILD, tmp_path, first, QUEUE, after_s=0.0, watch=lambda said, some=some: [int(said.readline()) for _ in range(some)][-1]
        )
        assert last > first + QUEUE
        for name, before in kept.items():
            found = rows_in(tmp_path / name)
            new = found[len(before) :]
            assert found[: len(before)] == before
            assert new == list(range(first, first + len(new)))
            assert last + 1 - QUEUE <= first + len(new) <= last + 1 + QUEUE, "more than a buffer is lost"
            kept[name] = found
        first = last + 1000


# Forks its victims from a process that has imported all. Every batch is a rotation of both growing files, every fourth a new whole file.
ROTATING = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from cluster.exporters.csv_file import CsvFile
from cluster.exporters.json_file import JsonArray, JsonLines
from cluster.exporters.wal import Sync
from tests.support.sinks import CONTEXT, numbered

folder, rotations, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
batches = [numbered(first, 3) for first in range(0, 30, 3)]

def live(say):
    growing = [CsvFile(folder / "x.csv", rotate_bytes=1, sync=Sync.NEVER), JsonLines(folder / "x.jsonl", rotate_bytes=1, sync=Sync.NEVER)]
    for at, batch in enumerate(itertools.cycle(batches)):
        for sink in growing:
            sink.write(CONTEXT.on(batch))
        if at % 4 == 0:
            whole = JsonArray(folder / "whole.json")
            whole.write(CONTEXT.on(batch))
            whole.close()
        os.write(say, b".")

kills = 0
while len(list(folder.glob("x.*.*"))) < rotations:
    hear, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            live(say)
        finally:
            os._exit(1)
    os.close(say)
    with open(hear, "rb", buffering=0) as told:
        for _ in range(chance.randrange(1, 50)):
            told.read(1)
    time.sleep(chance.uniform(0, 0.003))
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    kills += 1
print(kills)
"""


@pytest.mark.parametrize("rotations", [1000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_a_reader_never_sees_a_part_of_a_file_that_has_its_name(tmp_path: Path, rotations: int) -> None:
    """Through a thousand rotations and dozens of kills every numbered file and the whole one parse completely at any moment, and
    numbered files never change; what killed writers left is gone when the next one has begun.
    """
    command = [sys.executable, "-c", ROTATING, str(tmp_path), str(rotations), "3"]
    seen: dict[Path, bytes] = {}
    polls = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            while child.poll() is None:
                time.sleep(0.002)
                for path in (*rotated(tmp_path / "x.csv"), *rotated(tmp_path / "x.jsonl")):
                    if path not in seen:
                        assert len(rows_in(path)) > 0, path
                        seen[path] = path.read_bytes()
                if (tmp_path / "whole.json").exists():
                    assert len(rows_in(tmp_path / "whole.json")) == 3
                polls += 1
            kills = int(child.stdout.read())
            assert child.returncode == 0
        finally:
            child.kill()
    numbered_files = [*rotated(tmp_path / "x.csv"), *rotated(tmp_path / "x.jsonl")]
    assert len(numbered_files) >= rotations
    assert all(path.read_bytes() == found for path, found in seen.items())
    assert all(map(rows_in, numbered_files))
    assert kills >= 10
    assert polls > 10
    for sink in (CsvFile(tmp_path / "x.csv"), JsonArray(tmp_path / "whole.json")):
        sink.write(CONTEXT.on(numbered(0, 1)))
        sink.close()
    assert not list(tmp_path.glob(".*"))
