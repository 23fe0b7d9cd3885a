"""The Helm chart of examples/kubernetes: what it renders, and a process with what it renders.

There is no cluster: that Kubernetes starts the pods, mounts the files and asks the probes is not shown.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from ruamel.yaml import YAML

from statsig_otel import __version__
from tests.conftest import needs_kafka
from tests.deploy.helm import CHART, TOOLS, VALUES, container_of, needs_helm, pod_of, render, tool, valid
from tests.deploy.machine import ROOT
from tests.deploy.page import SECTIONS, commands, lines
from tests.deploy.proxies import HEALTH_PATH, PATH
from tests.e2e.processes import Process, signed
from tests.e2e.service_process import environment, run_to_end
from tests.e2e.statsig_client import SECRET, change, http, post
from tests.peers.otlp_servers import GrpcSink
from tests.peers.ports import free_port
from tests.waiting import wait_until

SIDECAR = CHART / "values" / "sidecar.yaml"
NEXT_SECRET = "webhook-fedcba9876543210fedcba9876543210"

pytestmark = [pytest.mark.slow, needs_helm]

each_values = pytest.mark.parametrize("values", VALUES, ids=[path.stem for path in VALUES])


def test_there_are_values_for_both_modes_for_projects_and_for_a_sidecar() -> None:
    assert [path.stem for path in VALUES] == ["disk", "kafka", "projects", "sidecar"]


@each_values
def test_helm_and_kubernetes_find_nothing_wrong(values: Path, tmp_path: Path) -> None:
    lint = tool("helm", "lint", "--strict", "--values", str(values), str(CHART))
    assert lint.returncode == 0, lint.stdout
    valid(["--values", str(values)], tmp_path)


@each_values
def test_the_service_understands_the_configuration(values: Path, tmp_path: Path) -> None:
    limits = "server.max_connections=500,server.max_in_flight_bytes=64MiB"
    config = render("--values", str(values), "--set", limits)["ConfigMap"]["data"]["statsig-otel.yaml"]
    for folder in set(re.findall(r"/etc/statsig-otel/secrets/([a-z-]+)/", config)):
        secrets(tmp_path / "secrets" / folder, "0", SECRET, "")
    file = tmp_path / "statsig-otel.yaml"
    file.write_text(config.replace("/etc/statsig-otel/secrets", str(tmp_path / "secrets")))
    env = {"KAFKA_PASSWORD": "made-up"}
    checked = run_to_end("validate", "--no-machine", "--config", str(file), env=env)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr.lower()


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Without a cluster: what Helm would send to it, the keys of the Secret, and the pod's name."""
    blocks = commands("In Kubernetes")
    begin, install, real_secret, look, rotation, rotation_end, check, upgrade, reload, grow, backup, restore, old = (
        blocks
    )
    tag, push, made_up_secret, copy = lines(begin)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(shlex.split(copy), cwd=tmp_path, check=True)
    installed = sent_by(install, tmp_path)
    config = render("--values", str(VALUES[0]))["ConfigMap"]["data"]["statsig-otel.yaml"]
    keys = re.findall(r"--from-literal=([a-z-]+)=", made_up_secret)
    assert keys == re.findall(r"/etc/statsig-otel/secrets/statsig/([a-z-]+)", config)
    assert re.findall(r'"([a-z-]+-secret)": "', real_secret + rotation + rotation_end) == [*keys, *keys]
    assert f"image: {json.dumps(tag.split()[-1])}" in installed
    assert push.split()[-1] == tag.split()[-1]
    for secret in (made_up_secret, real_secret, rotation, rotation_end):
        (name,) = re.findall(r"kubectl (?:create secret generic|patch secret) (\S+) ", secret)
        assert f"secretName: {name}" in installed
    assert (
        sent_by(upgrade, tmp_path) == installed.replace(f"statsig-otel:{__version__}", "statsig-otel:NEW") != installed
    )
    (workload,) = [one for one in YAML(typ="safe").load_all(installed) if one and one["kind"] == "StatefulSet"]
    container = workload["spec"]["template"]["spec"]["containers"][0]
    in_pod = f"kubectl exec {workload['metadata']['name']}-0 --container {container['name']} -- "
    assert in_pod.replace("exec", "exec --stdin") in check
    (volume,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "queue"]
    doctor, send, queue = (line.removeprefix(in_pod).split() for line in look.splitlines())
    assert doctor == ["statsig-otel", "doctor", *container["args"][1:]]
    assert send[:3] == ["statsig-otel", "send", "--secret-file"]
    assert f"${{file:{send[3]}}}" in config
    assert send[5] == f"http://localhost:{container['ports'][0]['containerPort']}{PATH}"
    assert queue == ["statsig-otel", "queue", "--directory", volume]
    upgrade, reload = reload.splitlines()
    assert sent_by(upgrade, tmp_path) == installed
    assert reload.removeprefix(in_pod).split() == ["statsig-otel", "reload", *container["args"][1:]]
    back_up, copy, compare, _, remove = (line.removeprefix(in_pod) for line in lines(backup))
    assert back_up == f"statsig-otel queue --directory {volume} backup {volume}/backup.db"
    assert copy == f"(umask 077 && {in_pod}cat {volume}/backup.db > backup.db.new)"
    assert compare == in_pod.replace("exec", "exec --stdin") + f"cmp - {volume}/backup.db < backup.db.new"
    assert remove == f"rm {volume}/backup.db"
    check_restoring(restore, workload)
    assert [line.removeprefix(in_pod) for line in old.splitlines()] == [f"ls {volume}", f"rm -r {volume}/FOLDER"]
    claim, delete, upgrade = lines(grow)
    (template,) = workload["spec"]["volumeClaimTemplates"]
    assert claim.split()[3] == f"{template['metadata']['name']}-{workload['metadata']['name']}-0"
    assert delete.split()[3] == workload["metadata"]["name"]
    assert json.loads(shlex.split(claim)[-1])["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert sent_by(upgrade, tmp_path) == installed.replace("storage: 1Gi", "storage: 2Gi") != installed


def test_the_commands_of_the_sidecar(tmp_path: Path) -> None:
    """Those of examples/collector: the pod takes its backend's address from the Secret that they make."""
    readme = (ROOT / "examples" / "collector" / "README.md").read_text()
    make, copy = re.findall(r"^  (kubectl .*|cp .*)$", readme, re.MULTILINE)
    (install,) = re.findall(r"^  (helm .*)$", readme, re.MULTILINE)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(shlex.split(copy), cwd=tmp_path, check=True)
    (workload,) = [
        one for one in YAML(typ="safe").load_all(sent_by(install, tmp_path)) if one and "StatefulSet" in one["kind"]
    ]
    containers = workload["spec"]["template"]["spec"]["containers"]
    (name,) = re.findall(r"kubectl create secret generic (\S+) --from-literal=BACKEND_ENDPOINT=https://", make)
    assert [{"secretRef": {"name": name}}] in [one.get("envFrom") for one in containers]


def check_restoring(restore: str, workload: dict[str, Any]) -> None:
    """The script is that for Docker, which a test runs. Its pod has the volume and the rights of the chart's pod."""
    _, read, down, _, apply, _, put, delete, up = map(shlex.split, lines(restore))
    assert [down[3], up[3]] == [workload["metadata"]["name"]] * 2
    docker = [shlex.split(line) for line in lines(commands("In a container")[-2])]
    assert read == docker[1]
    assert put[put.index("-c") :] == docker[3][docker[3].index("-c") :]
    pod = YAML(typ="safe").load((ROOT / apply[-1]).read_text())
    assert pod["metadata"]["name"] == delete[3] == put[3]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 1
    chart = workload["spec"]["template"]["spec"]
    assert pod["spec"]["securityContext"] == chart["securityContext"]
    (one,) = pod["spec"]["containers"]
    assert one["securityContext"] == chart["containers"][0]["securityContext"]
    assert one["image"] == chart["containers"][0]["image"]
    assert one["volumeMounts"][0] in chart["containers"][0]["volumeMounts"]
    claim = f"{one['volumeMounts'][0]['name']}-{workload['metadata']['name']}-0"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize("name", ["ingress", "restore"])
def test_kubernetes_knows_the_keys_of_the_other_files(name: str) -> None:
    found = tool("kubernetes-validate", "--strict", "--no-warn", str(CHART / f"{name}.yaml"))
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_ingress_and_the_route_lead_to_the_chart_s_service() -> None:
    done = tool(
        "helm", "template", "statsig-otel", str(CHART), "--values", str(VALUES[0]), "--show-only=templates/network.yaml"
    )
    (service,) = [
        one
        for one in YAML(typ="safe").load_all(done.stdout)
        if (one["kind"], one["metadata"]["name"]) == ("Service", "statsig-otel")
    ]
    ingress = YAML(typ="safe").load((CHART / "ingress.yaml").read_text())
    (rule,) = ingress["spec"]["rules"]
    assert [one["path"] for one in rule["http"]["paths"]] == [PATH, f"{PATH}/", HEALTH_PATH]
    for one in rule["http"]["paths"]:
        port = {"name": service["spec"]["ports"][0]["name"]}
        assert one["backend"] == {"service": {"name": service["metadata"]["name"], "port": port}}
    (way,) = YAML(typ="safe").load((CHART / "httproute.yaml").read_text())["spec"]["rules"]
    assert [one["path"] for one in way["matches"]] == [
        {"type": "Exact", "value": path} for path in (PATH, f"{PATH}/", HEALTH_PATH)
    ]
    assert way["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    annotations = ingress["metadata"]["annotations"]
    scaling = (ROOT / "docs" / "scaling.md").read_text()
    for key in ("proxy-next-upstream", "proxy-body-size"):
        name = f"nginx.ingress.kubernetes.io/{key}"
        assert f"`{name}: {annotations[name]}`" in scaling


def test_a_connection_is_open_for_longer_than_an_ingress_keeps_it() -> None:
    """ingress-nginx keeps one for 60 s, and does not send a POST again that met its end."""
    values = ["--values", str(CHART / "values" / "projects.yaml")]
    for options, expected in (([], "75s"), (["--set", "server.read_header_timeout=5m"], "5m")):
        config = YAML(typ="safe").load(render(*values, *options)["ConfigMap"]["data"]["statsig-otel.yaml"])
        assert [one["read_header_timeout"] for one in config["receivers"].values()] == [expected] * 2


def test_receivers_of_one_s_own_replace_that_of_the_chart() -> None:
    options = ["--set-json", 'receivers={"statsig": null, "statsig/web": {"signingSecret": "web"}}']
    config = YAML(typ="safe").load(
        render("--values", str(VALUES[0]), *options)["ConfigMap"]["data"]["statsig-otel.yaml"]
    )
    assert list(config["receivers"]) == ["statsig/web"]


def test_only_a_restart_on_change_changes_the_pod() -> None:
    """The label of another version of the chart changes it, too, as an upgrade has to."""
    for on_change in (True, False):
        options = ["--values", str(VALUES[0]), "--set", f"restartOnChange={json.dumps(on_change)}"]
        one, other = (render(*options, *more) for more in ([], ["--set", "exporters.otlp_grpc.timeout=3s"]))
        assert one["ConfigMap"] != other["ConfigMap"]
        assert (one["StatefulSet"] != other["StatefulSet"]) is on_change


def test_openshift_gives_the_pod_a_user() -> None:
    context = pod_of(render("--values", str(VALUES[0]), "--set", "runAsUser=null"))["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys()
    assert context["runAsNonRoot"] is True


def test_a_load_balancer_does_not_publish_the_metrics() -> None:
    for values in VALUES[:2]:
        kinds = render("--values", str(values), "--set", "service.type=LoadBalancer")
        assert [port["name"] for port in kinds["Service"]["spec"]["ports"]] == ["webhook"]
        assert [port["name"] for port in kinds["Service-metrics"]["spec"]["ports"]] == ["metrics"]
        assert "type" not in kinds["Service-metrics"]["spec"]


def test_the_key_of_a_backend_is_a_file(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", SECTIONS["In Kubernetes"], re.DOTALL | re.MULTILINE)
    (tmp_path / "key.yaml").write_text(shown)
    options = ["--values", str(VALUES[0]), "--values", str(tmp_path / "key.yaml")]
    valid(options, tmp_path)
    kinds = render(*options)
    exporter = YAML(typ="safe").load(kinds["ConfigMap"]["data"]["statsig-otel.yaml"])["exporters"]["otlp_grpc"]
    assert exporter["headers"]["api-key"] == f"${{file:{container_of(kinds)['volumeMounts'][-1]['mountPath']}/key}}"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="LOUD: kubectl is missing (Debian: kubernetes-client)")
@pytest.mark.parametrize(("option", "status"), [("server.max_connections=9", 0), ("exporters.otlp_grpc.endpont=x", 1)])
def test_the_check_of_the_page_before_an_upgrade(option: str, status: int, tmp_path: Path) -> None:
    made, taken, checked = commands("In Kubernetes")[6].split(" | ")
    (tmp_path / "my-values.yaml").write_text(VALUES[0].read_text())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    words = [str(TOOLS / "helm"), *shlex.split(made)[1:], "--set", option]
    rendered = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    config = subprocess.run(shlex.split(taken), input=rendered, capture_output=True, text=True, check=True).stdout
    secrets(tmp_path / "secrets" / "statsig", "0", SECRET, "")
    config = config.replace("/etc/statsig-otel/secrets", str(tmp_path / "secrets"))
    words = [sys.executable, "-m", *shlex.split(checked.partition(" -- statsig-otel ")[2])]
    words.insert(2, "statsig_otel")
    done = subprocess.run(words, input=config, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == status, done.stderr
    assert ("endpont" in done.stderr) is bool(status)


def sent_by(command: str, folder: Path) -> str:
    """What `helm install` or `helm upgrade` would send to a cluster."""
    words = shlex.split(command)
    assert words[0] == "helm"
    assert words[1] in {"install", "upgrade"}
    template = [str(TOOLS / "helm"), "template", *words[2:]]
    done = subprocess.run(template, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_service_monitor_has_the_labels_that_prometheus_selects() -> None:
    plain, labelled = (
        render("--values", str(VALUES[1]), *options)["ServiceMonitor"]["metadata"]["labels"]
        for options in ([], ["--set", "serviceMonitor.labels.release=prometheus"])
    )
    assert labelled == {**plain, "release": "prometheus"}


def test_what_operators_add_gets_where_it_belongs(tmp_path: Path) -> None:
    otlp = {"periodic": {"exporter": {"otlp": {"protocol": "grpc", "endpoint": "http://collector:4317"}}}}
    authority = {"name": "ca", "configMap": {"name": "ca"}}
    digest = f"sha256:{64 * 'a'}"
    added: dict[str, Any] = {
        "image": {"digest": digest},
        "extensions": {"zpages": {}, "file_storage": {"min_free_bytes": "1GiB"}},
        "telemetry": {"logs": {"encoding": "json"}, "metrics": {"readers": [otlp]}},
        "extraVolumes": [authority],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        "volume": {"storageClassName": "-"},
        "service": {"type": "LoadBalancer", "annotations": {"team": "flags"}},
        "podAnnotations": {"prometheus.io/scrape": "true"},
        "podLabels": {"team": "flags", "app.kubernetes.io/name": "ignored"},
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 60,
    }
    (tmp_path / "added.yaml").write_text(json.dumps(added))
    options = ["--values", str(VALUES[0]), "--values", str(tmp_path / "added.yaml")]
    valid(options, tmp_path)
    kinds = render(*options)
    config = YAML(typ="safe").load(kinds["ConfigMap"]["data"]["statsig-otel.yaml"])
    assert config["extensions"]["file_storage"] == {"directory": "/var/lib/statsig-otel", "min_free_bytes": "1GiB"}
    assert config["service"]["extensions"] == ["file_storage", "health_check", "zpages"]
    telemetry = config["service"]["telemetry"]
    assert telemetry["logs"] == {"encoding": "json"}
    assert [list(reader) for reader in telemetry["metrics"]["readers"]] == [["pull"], ["periodic"]]
    assert container_of(kinds)["image"] == f"registry.example.com/statsig-otel@{digest}"
    assert container_of(kinds)["volumeMounts"][-1] == added["extraVolumeMounts"][0]
    assert pod_of(kinds)["volumes"][-1] == authority
    assert pod_of(kinds)["priorityClassName"] == "high"
    assert pod_of(kinds)["terminationGracePeriodSeconds"] == 60
    template = kinds["StatefulSet"]["spec"]["template"]
    assert template["metadata"]["annotations"].items() > added["podAnnotations"].items()
    assert template["metadata"]["labels"]["team"] == "flags"
    assert template["metadata"]["labels"].items() >= kinds["StatefulSet"]["spec"]["selector"]["matchLabels"].items()
    assert kinds["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "-"
    assert kinds["Service"]["spec"]["type"] == "LoadBalancer"
    assert kinds["Service"]["metadata"]["annotations"] == {"team": "flags"}


def test_each_project_has_its_path_and_its_secret() -> None:
    kinds = render("--values", str(CHART / "values" / "projects.yaml"))
    config = YAML(typ="safe").load(kinds["ConfigMap"]["data"]["statsig-otel.yaml"])
    folders = {
        volume["secret"]["secretName"]: mount["mountPath"]
        for volume in pod_of(kinds)["volumes"]
        for mount in container_of(kinds)["volumeMounts"]
        if "secret" in volume and mount["name"] == volume["name"]
    }
    assert {id_: (receiver["path"], receiver["signing_secrets"]) for id_, receiver in config["receivers"].items()} == {
        id_: (path, [f"${{file:{folders[secret]}/{key}}}" for key in ("signing-secret", "next-signing-secret")])
        for id_, path, secret in (
            ("statsig", "/web", "statsig-signing-secret"),
            ("statsig/mobile", "/mobile", "mobile-signing-secret"),
        )
    }
    assert config["service"]["pipelines"]["logs"]["receivers"] == ["statsig", "statsig/mobile"]


def test_whoever_needs_to_reaches_the_metrics_and_nobody_else_if_told_so() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    for options, expected in (
        ([], {"ports": [{"port": "metrics"}]}),
        (
            ["--set-json", f"networkPolicy.metricsFrom={json.dumps([prometheus])}"],
            {"ports": [{"port": "metrics"}], "from": [prometheus]},
        ),
    ):
        assert render("--values", str(VALUES[0]), *options)["NetworkPolicy"]["spec"]["ingress"][1] == expected


def test_a_disk_has_one_pod_with_a_volume_and_kafka_has_replicas_without() -> None:
    disk, kafka = (render("--values", str(values)) for values in VALUES[:2])
    assert disk.keys() - kafka.keys() == {"StatefulSet"}
    assert kafka.keys() - disk.keys() == {"Deployment", "PodDisruptionBudget", "ServiceMonitor"}
    assert disk["StatefulSet"]["spec"]["replicas"] == 1
    assert disk["StatefulSet"]["spec"]["podManagementPolicy"] == "Parallel", "so that a rollback replaces it"
    assert kafka["Deployment"]["spec"]["replicas"] == 3
    (claim,) = disk["StatefulSet"]["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(disk)["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/var/lib/statsig-otel"
    assert "queue" not in json.dumps(container_of(kafka)["volumeMounts"])
    config = YAML(typ="safe").load(kafka["ConfigMap"]["data"]["statsig-otel.yaml"])
    assert config["exporters"]["kafka"]["sending_queue"] == {"enabled": False}
    assert config["exporters"]["kafka"]["timeout"] == "15s", "as docs/scaling.md says"
    assert "lifecycle" not in container_of(disk), "the next pod would start later"
    assert "preStop" in container_of(kafka)["lifecycle"]
    for kinds in (disk, kafka):
        pod = pod_of(kinds)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container_of(kinds)["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_sidecar_is_reached_by_its_service_only_and_does_not_see_the_secret() -> None:
    """tests/e2e/test_collectors.py runs a Collector with this configuration."""
    kinds = render("--values", str(SIDECAR))
    service, collector = pod_of(kinds)["containers"]
    yaml = YAML(typ="safe")
    config = yaml.load(kinds["ConfigMap"]["data"]["collector.yaml"])
    assert config == yaml.load((ROOT / "examples" / "collector" / "sidecar.yaml").read_text())
    listening = [one["endpoint"] for one in config["receivers"]["otlp"]["protocols"].values()]
    assert all(re.fullmatch(r"\$\{env:\w+:-localhost:\d+\}", one) for one in listening)
    sent_to = yaml.load(kinds["ConfigMap"]["data"]["statsig-otel.yaml"])["exporters"]["otlp_grpc"]["endpoint"]
    assert listening[0].endswith(f":-{sent_to}}}")
    assert collector["securityContext"] == service["securityContext"]
    assert collector["args"][-1] == "/etc/collector/collector.yaml"
    assert [(mount["name"], mount["mountPath"]) for mount in collector["volumeMounts"]] == [
        ("config", "/etc/collector")
    ]
    with_other_values = render("--values", str(SIDECAR), "--set", "collector.config.extensions.x=null")
    annotations = [
        one["StatefulSet"]["spec"]["template"]["metadata"]["annotations"] for one in (kinds, with_other_values)
    ]
    assert annotations[0] != annotations[1]
    assert "collector.yaml" not in render("--values", str(VALUES[0]))["ConfigMap"]["data"]


def secrets(folder: Path, generation: str, current: str, following: str) -> None:
    """What the kubelet makes of a Secret: files that are links through `..data`, which it replaces at once."""
    written = folder / f"..{generation}"
    written.mkdir(parents=True)
    for name, value in (("signing-secret", current), ("next-signing-secret", following)):
        (written / name).write_text(value)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..next").symlink_to(written.name)
    (folder / "..next").replace(folder / "..data")


@contextmanager
def started(kinds: dict[str, Any], folder: Path) -> Iterator[dict[str, int]]:
    """The container's command as a process, with the files that it gets; each container port is a free one here."""
    container = container_of(kinds)
    ports = {port["name"]: free_port() for port in container["ports"]}
    config = kinds["ConfigMap"]["data"]["statsig-otel.yaml"]
    for port in container["ports"]:
        assert str(port["containerPort"]) in config
        config = config.replace(str(port["containerPort"]), str(ports[port["name"]]))
    folders = {mount["mountPath"]: folder / mount["name"] for mount in container["volumeMounts"]}
    arguments = list(container["args"])
    for mounted, here in folders.items():
        here.mkdir(exist_ok=True)
        config = config.replace(mounted, str(here))
        arguments = [argument.replace(mounted, str(here)) for argument in arguments]
    assert "/etc/" not in config
    assert "/var/" not in config
    (folder / "config" / "statsig-otel.yaml").write_text(config.replace("0.0.0.0", "127.0.0.1"))
    with Process([sys.executable, "-m", "statsig_otel", *arguments], environment()) as process:
        process.wait_for("Webhook URL: ")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert http.request("GET", f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}").status == 200
        assert http.request("GET", f"http://127.0.0.1:{ports['webhook']}{HEALTH_PATH}").status == 200
        assert b"statsig_otel_" in http.request("GET", f"http://127.0.0.1:{ports['metrics']}/metrics").data
        yield ports
        assert process.stop() == 0


def rotate(folder: Path, url: str) -> None:
    """The new secret counts without a restart."""
    assert post_with(NEXT_SECRET, url, 2).status == 401
    secrets(folder, "1", SECRET, NEXT_SECRET)
    wait_until(lambda: post_with(NEXT_SECRET, url, 2).status == 200, "the new secret counts")


def post_with(secret: str, url: str, number: int) -> urllib3.BaseHTTPResponse:
    body = json.dumps({"data": [change(number)]}).encode()
    return http.request("POST", url, body=body, headers=signed(body, secret=secret))


@pytest.mark.timeout(300)
def test_the_rendered_command_serves_with_a_disk(tmp_path: Path) -> None:
    secrets(tmp_path / "secrets-statsig", "0", SECRET, "")
    with GrpcSink() as backend:
        kinds = render("--values", str(VALUES[0]), "--set", f"exporters.otlp_grpc.endpoint={backend.address}")
        with started(kinds, tmp_path) as ports:
            url = f"http://127.0.0.1:{ports['webhook']}{PATH}"
            assert post(url, change(1)).status == 200
            wait_until(lambda: backend.records, "the record")
            rotate(tmp_path / "secrets-statsig", url)
        assert (tmp_path / "queue" / "queue.db").exists()


@pytest.mark.timeout(300)
@needs_kafka
def test_the_rendered_command_serves_with_kafka(tmp_path: Path) -> None:
    from tests.peers.kafka_cluster import KafkaCluster

    secrets(tmp_path / "secrets-statsig", "0", SECRET, "")
    with KafkaCluster(brokers=3) as cluster:
        exporters = {"kafka": {"brokers": cluster.brokers, "logs": {"topic": "otlp_logs"}, "auth": None, "tls": None}}
        kinds = render("--values", str(VALUES[1]), "--set-json", f"exporters={json.dumps(exporters)}")
        with started(kinds, tmp_path) as ports:
            url = f"http://127.0.0.1:{ports['webhook']}{PATH}"
            assert post(url, change(1)).status == 200
            assert len(cluster.read(1)) == 1
            rotate(tmp_path / "secrets-statsig", url)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "secrets-statsig"]
