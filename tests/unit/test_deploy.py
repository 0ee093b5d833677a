"""The files in deploy/ and examples/ are what the tools that read them expect."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from cluster.settings import FIELDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def yaml_of(name):
    return YAML(typ="safe").load((DEPLOY / name).read_text())


def instructions():
    """Return the Dockerfile's instructions as (word, rest), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_ray_up_file_fits_rays_own_schema():
    """`ray up` would accept the cluster file."""
    folder = Path(importlib.util.find_spec("ray").origin).parent
    schema = json.loads((folder / "autoscaler" / "ray-schema.json").read_text())
    config = yaml_of("ray-up.yaml")
    config_for_schema = {key: value for key, value in config.items() if key != "min_workers"}  # Ray's local provider takes it out itself
    jsonschema.validate(config_for_schema, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config_for_schema, "max_wrokers": 3}, schema)


def test_ray_up_file_passes_rays_own_validation(tmp_path):
    """Ray's own check of a cluster file, defaults and local provider included, takes it as it is."""
    code = (
        "import sys, yaml; from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "config = yaml.safe_load(open(sys.argv[1])); validate_config(prepare_config(config)); print('valid')"
    )
    command = [shutil.which("python3") or "python3", "-c", code, str(DEPLOY / "ray-up.yaml")]
    import sys

    command[0] = sys.executable
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    )
    assert done.stdout.strip() == "valid", done.stderr


def test_every_node_of_the_ray_up_file_authenticates():
    """Head and workers start with token authentication, the token is on all machines, and only workers carry the label."""
    config = yaml_of("ray-up.yaml")
    starts = [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line and "PATH=/opt/stress-cluster/venv/bin:$PATH" in line for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert ["stress=no" in starts[0], "stress=yes" in starts[1]] == [True, True]


def test_dockerfile_builds_from_what_is_there():
    """Each file that is copied exists, the packages are all there, and versions are pinned."""
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    names = [name for group in copied for name in group]
    assert {"actors", "scenarios", "cluster", "pyproject.toml", "constraints.txt"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
    assert any("--constraint constraints.txt" in rest for word, rest in instructions() if word == "RUN")


def test_dockerfile_runs_as_a_user_with_a_reaper_and_a_kept_state():
    """The container is not root, its first process reaps orphans, its tag is fixed, and STATE is a volume of mode 0700."""
    found = dict(instructions())
    assert found["USER"] not in {"root", "0"}
    assert json.loads(found["ENTRYPOINT"])[:3] == ["/usr/bin/tini", "--", "stress-cluster"]
    assert json.loads(found["CMD"]) == ["--help"]
    state = found["VOLUME"]
    assert f"STRESS_CLUSTER_STATE_DIR={state}" in found["ENV"]
    assert any(f"--mode=0700 {state}" in rest for word, rest in instructions() if word == "RUN")
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_prometheus_file_scrapes_both():
    """Runs and Ray are scraped, and a run's labels are kept as it gives them."""
    jobs = {job["job_name"]: job for job in yaml_of("prometheus.yml")["scrape_configs"]}
    assert set(jobs) == {"stress-cluster", "ray"}
    assert jobs["stress-cluster"]["honor_labels"] is True


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_file_is_valid():
    """promtool accepts the file."""
    done = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_in_documents_are_settings():
    """Every STRESS_CLUSTER_ variable that deploy, docs and README name sets something."""
    known = {one.variable for one in FIELDS}
    pages = [ROOT / "README.md", *(one for one in DEPLOY.rglob("*") if one.is_file()), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        named = set(re.findall(r"STRESS_CLUSTER_[A-Z_]*[A-Z]", page.read_text())) - known
        assert not named, f"{page}: {named}"


def test_example_job_is_three_lines():
    """The example is an import, a scenario and a run, and is quoted as it is in the how-to."""
    text = (ROOT / "examples" / "burst_job.py").read_text()
    body = ast.parse(text).body[1:]
    assert [type(one) for one in body] == [ast.Import, ast.ImportFrom, ast.Raise]
    assert text.split('"""\n\n', 1)[1] in (ROOT / "docs" / "how-to" / "run-as-a-ray-job.md").read_text()


def test_dependencies_have_their_reasons():
    """Each dependency of pyproject.toml has its line in the decision on dependencies."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text()
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b[^|]*\|", page, re.MULTILINE), name


def test_license_is_whole():
    """The licence is the Apache License 2.0 with all its parts."""
    text = (ROOT / "LICENSE").read_text()
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty or Additional Liability", "APPENDIX: How to apply"):
        assert part in text
