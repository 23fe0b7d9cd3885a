"""The Helm chart of examples/kubernetes, and what renders and checks it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.deploy.machine import ROOT

CHART = ROOT / "examples" / "kubernetes"
TOOLS = ROOT / "build" / "deploy" / "bin"
VALUES = sorted((CHART / "values").glob("*.yaml"))

needs_helm = pytest.mark.skipif(not (TOOLS / "helm").exists(), reason="LOUD: helm is missing: make deploy-tools")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=False)


def render(*options: str) -> dict[str, Any]:
    """What the chart makes, by kind, and by what its name has more than the release's."""
    done = tool("helm", "template", "changes", str(CHART), *options)
    assert done.returncode == 0, done.stderr
    documents = [document for document in YAML(typ="safe").load_all(done.stdout) if document]
    kinds = {
        document["kind"] + document["metadata"]["name"].removeprefix("changes"): document for document in documents
    }
    assert len(kinds) == len(documents)
    return kinds


def valid(options: list[str], folder: Path) -> None:
    """Kubernetes' schemas know everything that the chart makes."""
    rendered = tool("helm", "template", "changes", str(CHART), *options)
    (folder / "rendered.yaml").write_text(rendered.stdout)
    found = tool("kubernetes-validate", "--strict", "--no-warn", str(folder / "rendered.yaml"))
    assert found.returncode == 0, found.stdout + found.stderr


def pod_of(kinds: dict[str, Any]) -> dict[str, Any]:
    workload = kinds.get("StatefulSet") or kinds["Deployment"]
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def container_of(kinds: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(kinds)["containers"][0]
    assert container["name"] == "statsig-otel"
    return container
