"""What is handed to clusters is checked against what clusters accept: KubeRay's fields, Ray's launcher schema, a linter for the Dockerfile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"


def load(name: str) -> Any:
    text = (INFRA / name).read_text()
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


@pytest.fixture(scope="module")
def kuberay() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(load("k8s/kuberay-v1.schema.json"))


@pytest.mark.parametrize("name", ["k8s/rayjob.yaml", "k8s/raycluster.yaml"])
def test_kuberay_knows_every_field(name: str, kuberay: jsonschema.Draft202012Validator) -> None:
    manifest = load(name)
    kuberay.validate(manifest)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["rayVersion"] == ray.__version__
    # The schema does find mistakes.
    cluster["workerGroupSpecs"][0]["maxReplica"] = 3
    assert not kuberay.is_valid(manifest)


def test_the_job_runs_a_command_that_exists() -> None:
    from jobs import cli

    words = load("k8s/rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[0] == "msinn"
    assert cli.parser().parse_args(words[1:]).cluster == "auto"


def test_ray_launches_the_aws_cluster() -> None:
    config = load("ray/aws.yaml")
    jsonschema.validate(config, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    types = config["available_node_types"]
    assert "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]  # the head is not on spot
    for name, node in types.items():
        assert node["node_config"]["IamInstanceProfile"]["Name"]
        assert name == config["head_node_type"] or node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_policy_grants_no_more_than_is_used() -> None:
    actions = set()
    for statement in load("aws/iam-policy.json")["Statement"]:
        assert statement["Effect"] == "Allow"
        assert "*" not in (statement["Resource"], statement["Action"])
        actions |= {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])
    # Runs never delete or overwrite.
    assert actions == {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"}


def test_lifecycle_rules_touch_no_truth() -> None:
    for rule in load("aws/lifecycle.json")["Rules"]:
        assert rule["Status"] == "Enabled"
        assert "Expiration" not in rule or rule["Filter"]["Prefix"].endswith("/analyse/")


def test_no_file_holds_a_key() -> None:
    for path in [path for path in INFRA.rglob("*") if path.suffix in (".yaml", ".json", ".sh") or path.name == "Dockerfile"]:
        assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[:=]|BEGIN [A-Z ]*PRIVATE KEY", path.read_text(), re.I), path


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, INFRA / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    text = (INFRA / "docker" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from=source )(.+) \S+$", text, re.M)
    assert len(copied) == 5
    for source in copied:
        for name in source.split():
            assert (INFRA.parent / name).exists(), name


def test_nothing_that_users_install_is_under_the_gpl() -> None:
    """Whoever installs msinn, or msinn[train], may pass it on under our licence: all that comes with it is permissive, or the LGPL at most."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["train"])]
    seen: dict[str, list[str]] = {}
    while waiting:
        wanted = waiting.pop()
        if wanted.name.lower() in seen:
            continue
        try:
            found = distribution(wanted.name).metadata
        except PackageNotFoundError:  # for another platform or Python
            continue
        classifiers = [text for text in found.get_all("Classifier") or [] if text.startswith("License")]
        # Some put the whole text of their licence there: its first line names it.
        seen[wanted.name.lower()] = [found.get("License-Expression") or "", (found.get("License") or "").strip().partition("\n")[0], *classifiers]
        needs = [Requirement(text) for text in found.get_all("Requires-Dist") or []]
        waiting += [need for need in needs if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted.extras or {""})]
    assert {"torch", "ray", "imagecodecs", "aiohttp"} <= seen.keys()
    strict = {name: said for name, said in seen.items() if any(re.search(r"(?<!L)GPL|(?<!Lesser )General Public", text) for text in said)}
    assert strict == {}
