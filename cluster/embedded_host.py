"""The process that hosts an embedded Ray: starts it, says where it listens, ends it when its standard input closes.

It leads a session of its own, which is how the guardian knows every process of this Ray: the session is an undo record, armed
by the driver before this process starts Ray. Raylets that die are reaped here, so that their workers notice.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from pathlib import Path

from .embedded import Lease


def main() -> int:
    """Read {"folder", "nodes", "state_dir", "lease"} from the first line of standard input; serve until end of file.

    Prints {"address"} as soon as the head can be connected to, and {"nodes"} when all of them have joined.
    """
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=Lease(**request["lease"]).keep, args=(Path(request["state_dir"]),), name="lease", daemon=True).start()
    from .ray_port import Embedded  # noqa: PLC0415  # takes seconds, and the lease must be kept meanwhile

    folder = Path(request["folder"])
    embedded = Embedded(folder, int(request["nodes"]))
    answer = os.dup(1)
    os.dup2(2, 1)  # Ray prints; only the answer goes to our parent
    embedded.start_head()
    os.write(answer, (json.dumps({"address": embedded.address}) + "\n").encode())
    embedded.start_nodes()
    os.write(answer, (json.dumps({"nodes": embedded.nodes}) + "\n").encode())
    while not select.select([0], [], [], 0.2)[0] or os.read(0, 1):
        embedded.reap()
    embedded.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
