"""A write-ahead log whose owner is killed with SIGKILL at a thousand moments, some of them in the middle of a write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.killing import ROOT

# Forks its victims from a process that has imported all, so that a kill costs milliseconds. They say + after an append, ~ before and
# - after an acknowledgement.
DRIVER = """
import json, os, random, signal, sys
from pathlib import Path
from cluster.exporters import wal
from cluster.exporters.wal import Sync, WriteAheadLog

folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))

def opened():
    return WriteAheadLog(folder, segment_bytes=1 << 13, sync=Sync.NEVER)

def payload(at):
    return at.to_bytes(8, "little") * (1 + at % 60)

def live(say):
    log = opened()
    for at in range(log.after, 10**9):
        log.append(at, 1, payload(at), 320)
        os.write(say, b"+%d\\n" % at)
        if at % 5 == 4:
            while log.pending_rows:
                done = log.read()[0].after
            os.write(say, b"~%d\\n" % done)
            log.ack(done)
            os.write(say, b"-%d\\n" % done)

def killed():
    hear, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            live(say)
        finally:
            os._exit(1)
    os.close(say)
    with open(hear, "rb") as told:
        lines = [told.readline() for _ in range(chance.randrange(1, 40))]
        os.kill(pid, signal.SIGKILL)
        lines += told.readlines()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    return [line for line in lines if line.endswith(b"\\n")]

def found():
    log = opened()
    firsts, after = [], log.after
    while log.pending_rows:
        entry, data = log.read()
        assert data == payload(entry.first)
        firsts.append(entry.first)
    told = log.cut_bytes, log.lost_bytes
    log.close()
    return firsts, after, told

top, acked, torn = -1, 0, 0
for kill in range(kills):
    lines = killed()
    said = {sign: [int(line[1:]) for line in lines if line.startswith(sign)] for sign in (b"+", b"~", b"-")}
    top, acked = max([top, *said[b"+"]]), max([acked, *said[b"-"]])
    asked = max([acked, *said[b"~"]])
    tail = b""
    if kill % 2:  # as when the last write had not gone all the way; a kill tears one by itself only where it passes the end of a page
        opened().close()
        whole = wal._record(1, top + 1, 1, payload(top + 1), 320)
        tail = whole[: chance.randrange(1, len(whole))]
        path = max(folder.glob("*.wal"))
        path.write_bytes(path.read_bytes() + tail)
        torn += 1
    firsts, after, (cut, lost) = found()
    assert (cut >= len(tail), lost) == (True, 0), (kill, cut, lost, tail)
    assert firsts == list(range(after - len(firsts), after)), (kill, firsts)
    assert after - 1 in (top, top + 1), (kill, after, top)
    assert after - len(firsts) in (acked, asked), (kill, firsts, acked, asked)
    assert (again := found()) == (firsts, after, (0, 0)), ("replaying it changes something", kill, firsts, after, again)
    top, acked = after - 1, after - len(firsts)
print(json.dumps({"appended": top, "acknowledged": acked, "torn": torn}))
"""


def test_what_was_acknowledged_outlives_a_thousand_kills(tmp_path: Path) -> None:
    """Recovered is what `append` returned for and nobody acknowledged, in order, once, each under its number; a record or an
    acknowledgement whose return was not heard of is there or not; torn tails go and are counted; opening it again changes nothing.
    """
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "log"), "1000", "11"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert told["appended"] > 10_000
    assert told["torn"] == 500
