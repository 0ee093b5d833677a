"""A Prometheus server of a test's own: started on a free port of the loopback, asked over its HTTP API, ended with the test."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .waiting import until

PROMETHEUS: Final = shutil.which("prometheus")


@contextlib.contextmanager
def serving(folder: Path, jobs: str, every_s: int = 2) -> Iterator[str]:
    """Give the address of the API of a Prometheus that scrapes these jobs (YAML, indented by two) into a folder."""
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(f"global: {{scrape_interval: {every_s}s, scrape_timeout: {every_s}s}}\nscrape_configs:{jobs}\n")
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage"]
    with log.open("wb") as file:
        started = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
    try:
        seen = until(lambda: re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', log.read_text()), 60, log.read_text)
        until(lambda: _is_ready(f"http://{seen[1]}/-/ready"), 60, log.read_text)
        yield f"http://{seen[1]}/api/v1"
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(30)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False


def ask(api: str, path: str, **query: str) -> Any:
    """Return the data of an answer."""
    with urllib.request.urlopen(f"{api}/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)["data"]
