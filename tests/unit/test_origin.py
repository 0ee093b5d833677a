"""Which code runs: the packages are found as an import finds them, and one that is not ours is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors.origin import code_id, digest_sources

ROOT = Path(__file__).parents[2]
ASK = "import sys; sys.path.insert(0, {root!r}); {first}from actors.origin import code_id; print(code_id())"


def asked_in(folder: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """Ask for the code in a process of its own, with the folder before ours on the path."""
    code = ASK.format(root=str(ROOT), first=first)
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-c", code.replace("sys.path.insert(0", "sys.path.insert(1")]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_the_code_is_one_digest_over_the_three_packages(tmp_path: Path) -> None:
    """Another process on the same sources says the same; it runs none of the packages for that."""
    found = asked_in(tmp_path, "print('cluster' in sys.modules); ")
    assert found.stdout.split() == ["False", code_id()], found.stderr
    assert code_id() == digest_sources({name: ROOT / name for name in ("actors", "cluster", "scenarios")})


@pytest.mark.parametrize(
    "shadow",
    [
        pytest.param("cluster.py", id="a-module"),
        pytest.param("cluster/__init__.py", id="a-package"),
        pytest.param("scenarios/__init__.py", id="another-package"),
    ],
)
def test_a_package_that_hides_ours_is_named(tmp_path: Path, shadow: str) -> None:
    """The user's own file is found first: the message says which, and what to do."""
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("import nothing_of_the_kind\n")
    found = asked_in(tmp_path)
    assert found.returncode == 1
    assert f"finds {tmp_path / shadow}, which is not part of stress-cluster" in found.stderr


def test_any_changed_byte_is_other_code(tmp_path: Path) -> None:
    """Content and name count, wherever the folder lies."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("1\n")
    first = digest_sources({"actors": tmp_path / "a"})
    (tmp_path / "a" / "one.py").write_text("2\n")
    second = digest_sources({"actors": tmp_path / "a"})
    (tmp_path / "a" / "one.py").rename(tmp_path / "a" / "two.py")
    assert len({first, second, digest_sources({"actors": tmp_path / "a"})}) == 3
