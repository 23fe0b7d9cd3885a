"""The commands of docs/running.md that change the Secret."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.deploy.page import SHELLS, commands, run_with_answer
from tests.e2e.statsig_client import SECRET

KUBECTL = f"""#!{sys.executable}
import sys
given = sys.stdin.read()
with open(sys.argv[1], "w") as file:
    print(*sys.argv, given, sep="\\n", end="", file=file)
"""
"""Writes its arguments and what it reads into a file."""


@pytest.mark.parametrize(("block", "key"), [(2, "signing-secret"), (4, "next-signing-secret")])
@pytest.mark.parametrize("shell", SHELLS)
def test_only_a_pipe_brings_the_secret_to_kubectl(shell: str, block: int, key: str, tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    command = commands("In Kubernetes")[block]
    with pytest.raises(subprocess.CalledProcessError):
        run_with_answer(command, "", shell=shell, folder=tmp_path, programs=tmp_path)
    assert not (tmp_path / "patch").exists()
    run_with_answer(command, SECRET, shell=shell, folder=tmp_path, programs=tmp_path)
    *words, read = (tmp_path / "patch").read_text().splitlines()
    assert json.loads(read) == {"stringData": {key: SECRET}}
    assert words[-2:] == ["--patch-file", "/dev/stdin"]
    assert SECRET not in "".join(words)


ROTATION = """#!/bin/sh
case $1 in
get) exec kubectl annotate --local --filename secret.yaml --output "$5" checked=yes ;;
patch) shift 3; kubectl patch --local --filename secret.yaml "$@" --output yaml > new.yaml && mv new.yaml secret.yaml ;;
esac
"""
"""kubectl with a file in the place of a cluster."""


@pytest.mark.skipif(not shutil.which("kubectl"), reason="LOUD: kubectl is missing (Debian: kubernetes-client)")
def test_the_end_of_a_rotation_copies_the_secret_that_works(tmp_path: Path) -> None:
    """Once more, it finds no second secret and changes nothing."""
    (tmp_path / "kubectl").write_text(ROTATION.replace("kubectl ", f"{shutil.which('kubectl')} "))
    (tmp_path / "kubectl").chmod(0o755)
    data = {"signing-secret": "b2xk", "next-signing-secret": "bmV3"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "statsig-signing-secret"}, "data": data}
    (tmp_path / "secret.yaml").write_text(json.dumps(secret))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["sh", "-c", commands("In Kubernetes")[5]], cwd=tmp_path, env=env, check=False)
        found = YAML(typ="safe").load((tmp_path / "secret.yaml").read_text())
        assert found["data"] == {"signing-secret": "bmV3", "next-signing-secret": ""}
