"""The catalogue's memory storm by the command line on two nodes at once, pushed together: doses as agents read them of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import documents
from support.terminal import Terminal

from cluster.analysis import load
from scenarios import text
from scenarios.catalogue.memory_storm import lasting

TOTAL_S = 15.0  # too short for a verdict on a curve of a third of it: its means are compared here


def test_a_storm_on_two_nodes_is_what_was_asked_and_leaves_nothing(standing: Terminal) -> None:
    """All that is held and paged is there as asked on each node, both hypotheses are judged and hold, and no load is left.

    What takes CPU time is not judged: a machine that is busy with others gives none.
    """
    made = {**text.to_data(lasting(TOTAL_S)), "targets": {"names": ["n1", "n2"]}}
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=150)
    assert ended.code in {0, 5}, str(ended)
    summary = load(Path(ended.document["run_dir"])).summary
    assert summary is not None
    doses = {one["operation"]: one for one in summary["dose"]}
    assert len(doses) == 16, doses
    for name, dose in doses.items():
        if "MemoryPressure" in name:
            assert dose["reached"] is not False, dose
            assert dose["achieved"] == pytest.approx(dose["requested"], rel=0.05), dose
        elif "MemoryAccess" not in name:
            assert dose["reached"], dose
    assert [one["held"] for one in summary["hypotheses"]] == [True, True]
    assert standing.loads() == []
