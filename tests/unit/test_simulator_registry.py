from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import jsonschema
import pytest

from actors.dose import METERS
from actors.errors import InputError
from actors.messages import Amounts, Capacity, Operation
from actors.metrics.registry import CATALOGUE
from actors.option import Option
from actors.reference import elsewhere
from actors.simulator import REGISTRY, absolute, check, peak_amounts, record_of
from cluster.safety.policies import THROTTLES

CAPACITY = Capacity(cpu_cores=4.0, memory_bytes=1_000_000_000, disk_bytes=2_000_000_000)
WHOLE = Capacity(4.0, 1 << 30, 1 << 40, 1, 1000, 1000, 1000, 1000, 1000, object_store_bytes=1 << 30)
CPU = Operation("0.CpuLoad@n1", "CpuLoad", "n1", 0.0, 10.0, "fraction", {"kind": "ramp", "start": 0.1, "end": 0.5, "over_s": 10})


@pytest.mark.parametrize("name", list(REGISTRY))
def test_records_are_complete(name: str) -> None:
    """Every record says all that `describe` and the schema need, and its defaults pass its own checks and schema."""
    record = REGISTRY[name]
    document = json.loads(json.dumps(record.to_json()))
    assert record.name == name
    assert record.summary.endswith(".")
    assert record.measure
    assert 0 < record.tolerance <= 0.05
    keys = [option.name.removesuffix("_s").removesuffix("_bytes") for option in record.options]
    assert len(set(keys)) == len(keys), "a scenario's text names no units: two options would be one"
    for option, value in record.resolve_options({}).items():
        jsonschema.validate(value, document["options"][option])
        assert document["options"][option]["description"]


def test_what_a_record_names_exists() -> None:
    """Its meter, its ceiling and its metrics are known, what it reserves is something, and its code can be loaded."""
    for record in REGISTRY.values():
        assert {record.meter, *record.meters.values()} <= set(METERS)
        assert set(record.meters) <= set(record.units)
        assert record.resource in THROTTLES
        assert set(record.metrics) <= set(CATALOGUE)
        for unit in record.units:
            operation = Operation("0@n", record.name, "n", 0.0, 1.0, unit, {"kind": "constant", "level": 1.0})
            assert peak_amounts(operation, WHOLE) != Amounts(), record.name
        if record.entry:
            module, _, attribute = record.entry.partition(":")
            assert hasattr(importlib.import_module(f"actors.{module}"), attribute)


def test_options_are_bounded() -> None:
    """What is out of an option's range, of another kind, or no number is refused with its name, and numbers keep their kind."""
    share = Option("share", "fraction", 0.5, "a share")
    for bad in (-0.1, 1.1, float("nan"), float("inf"), True, "50%", None):
        with pytest.raises(InputError, match="'share' must be a number from 0 to 1"):
            share.check(bad)
    count = Option("count", "integer", 5, "how many", low=1, high=10)
    assert count.check(7.0) == 7
    assert type(count.check(7.0)) is int
    for bad in (0, 11, 2.5, "3"):
        with pytest.raises(InputError, match="a whole number from 1 to 10"):
            count.check(bad)
    with pytest.raises(InputError, match="an absolute path"):
        Option("dir", "path", "", "a folder").check("relative/path")


def test_reading_records_loads_nothing_heavy() -> None:
    """The plan, the CLI and the agent read records without numba, numpy or Ray."""
    code = "import sys; from actors.simulator import REGISTRY; list(REGISTRY); print({'numba', 'ray', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"kind": "CpuLaod"}, "unknown_name", id="unknown-simulator"),
        pytest.param({"options": {"kernal": "float"}}, "unknown_key", id="unknown-option"),
        pytest.param({"options": {"kernel": "fpga"}}, "invalid_value", id="unknown-choice"),
        pytest.param({"options": {"cores": 0}}, "invalid_value", id="no-cores"),
        pytest.param({"options": {"cores": True}}, "invalid_value", id="cores-as-a-boolean"),
        pytest.param({"unit": "bytes"}, "invalid_value", id="cpu-in-bytes"),
        pytest.param({"duration_s": 0.0}, "invalid_value", id="no-time"),
        pytest.param({"duration_s": float("inf")}, "invalid_value", id="for-ever"),
        pytest.param({"shape": {"kind": "constant", "level": 1.01}}, "invalid_value", id="101-percent"),
    ],
)
def test_bad_operations_are_refused(change: dict[str, object], code: str) -> None:
    """What is wrong with an operation is said before any node is asked."""
    check(CPU)
    with pytest.raises(InputError) as caught:
        check(replace(CPU, **change))
    assert caught.value.code == code


def test_a_nearest_option_is_offered() -> None:
    """A misspelt option names the one that was probably meant."""
    with pytest.raises(InputError) as caught:
        record_of("CpuLoad").resolve_options({"kernal": "float"})
    assert "'kernel'" in caught.value.hint


@pytest.mark.parametrize(
    ("operation", "want"),
    [
        pytest.param(CPU, Amounts(cpu_cores=2.0), id="half-of-four-cores"),
        pytest.param(replace(CPU, duration_s=5.0), Amounts(cpu_cores=1.2), id="a-ramp-cut-short"),
        pytest.param(
            replace(CPU, options={"kernel": "cache_memory"}),
            Amounts(2.0, 256 << 20),
            id="a-kernel-with-memory",
        ),
        pytest.param(replace(CPU, kind="MemoryPressure"), Amounts(memory_bytes=500_000_000), id="half-of-the-memory"),
        pytest.param(
            replace(CPU, kind="DiskFill", unit="bytes", shape={"kind": "constant", "level": 4096}), Amounts(disk_bytes=4096), id="bytes"
        ),
    ],
)
def test_what_an_operation_reserves(operation: Operation, want: Amounts) -> None:
    """A slot reserves the operation's peak on this node."""
    found = peak_amounts(operation, CAPACITY)
    assert (found.cpu_cores, found.memory_bytes, found.disk_bytes) == pytest.approx((want.cpu_cores, want.memory_bytes, want.disk_bytes))


def test_bytes_are_not_scaled() -> None:
    """A shape in bytes asks the same of a small and a large node."""
    operation = replace(CPU, kind="MemoryPressure", unit="bytes", shape={"kind": "constant", "level": 1e6})
    assert absolute(operation, CAPACITY).value(0) == 1e6


@pytest.mark.parametrize("name", list(REGISTRY))
def test_what_a_node_cannot_do_has_a_reason_and_a_way(name: str) -> None:
    """Whatever a node lacks, a verdict other than available says why, and what would allow it."""
    for found in elsewhere(REGISTRY[name]):
        assert found.reason, found
        assert found.allow, found
