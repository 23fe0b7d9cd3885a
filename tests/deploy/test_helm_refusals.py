"""Values that the Helm chart refuses, and what it says then."""

from pathlib import Path

import pytest

from tests.deploy.helm import CHART, VALUES, needs_helm, tool, valid

pytestmark = [pytest.mark.slow, needs_helm]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("mode=memory", "mode"),
        ("replicas=0", "replicas"),
        ("image.repository=", "repository"),
        ("receivers.statsig.endpoint=localhost:1", "receivers.statsig.endpoint: the chart sets it"),
        ("receivers.statsig.signing_secrets={x}", "receivers.statsig.signing_secrets: the chart sets it"),
        ("receivers.statsig/app.path=/app", "signingSecret"),
        ("receivers.statsig/A_b.signingSecret=one", "receivers.statsig/A_b: the name has to be statsig, or statsig/"),
        ("receivers.mobile.signingSecret=one", "receivers.mobile: the name has to be statsig, or statsig/"),
        (f"receivers.statsig/{41 * 'a'}.signingSecret=one", "a: the name has to be statsig, or statsig/"),
        ("exporters=null", "exporters"),
        ("volume.size=1", "volume.size: 1 is not a size. Sizes are written as"),
        ("volume.size=1GiB", "volume.size: 1GiB is not a size. Sizes are written as"),
        ("image.repository=r:5000/s:1", "image.repository: r:5000/s:1 has a tag or a digest"),
        (f"image.tag=v1,image.digest=sha256:{64 * 'a'}", "image.tag and image.digest: both are set"),
        ("replicas=2", "replicas: only for mode kafka"),
        ("telemetry.metrics=null", "/telemetry/metrics"),
        ("extensions.file_storage.directory=/x", "extensions.file_storage.directory: the chart sets it"),
        ("extensions.health_check.endpoint=x:1", "extensions.health_check.endpoint: the chart sets it"),
        ("podAnnotations.checksum/config=x", "podAnnotations.checksum/config: the chart sets it"),
        ("extraVolumes[0].name=queue", "extraVolumes: the chart has a volume with the name queue"),
        ("extraVolumes[0].name=secrets-statsig", "extraVolumes: the chart has a volume with the name secrets-statsig"),
        ("receivers.statsig.health_path=/h", "receivers.statsig.health_path: it is the same for all receivers"),
        ("receivers.statsig.max_connections=9", "set server.max_connections"),
        ("receivers.statsig.max_in_flight_bytes=9MiB", "set server.max_in_flight_bytes"),
        ("receivers.statsig/web.signingSecret=web", "receivers.statsig and receivers.statsig/web: both have the path"),
        ("receivers=null", "receivers"),
        ("mode=kafka", "mode kafka takes one exporter of the type kafka, and here are otlp_grpc"),
        ("mode=kafka,exporters.kafka.brokers={b:1}", "here are kafka, otlp_grpc"),
        ("collector.image=otelcol", "config"),
        ("collector.config.receivers.otlp.protocols=null", "collector.config: without collector.image"),
        ("telemetry.metrics.level=none", "telemetry.metrics.level: with none, nothing answers on port 8888"),
        ("nodeSelector.gpu=true", "/nodeSelector/gpu"),
        ("nodeSelector.gpu=1", "/nodeSelector/gpu"),
        ("volume.size=0Gi", "volume.size: 0Gi is not a size"),
        ("volume.size=0.0Gi", "volume.size: 0.0Gi is not a size"),
        ("server.read_header_timeout=null", "/server"),
        ("service.port=null", "/service"),
        ("networkPolicy.enabled=null", "/networkPolicy"),
        ("misspelt=1", "misspelt"),
    ],
)
def test_wrong_values_are_refused(wrong: str, message: str) -> None:
    assert message in refused(VALUES[0], wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("exporters.kafka.sending_queue.enabled=true", "exporters.kafka.sending_queue: mode kafka has no volume"),
        ("collector.image=otelcol,collector.config.receivers.otlp=null", "collector: only for mode disk"),
        ("extensions.file_storage.min_free_bytes=1GiB", "extensions.file_storage: mode kafka has no volume"),
        ("exporters.kafka.brokers=null", "exporters.kafka.brokers: is empty"),
    ],
)
def test_what_needs_a_volume_is_refused_without_one(wrong: str, message: str) -> None:
    assert message in refused(VALUES[1], wrong)


@pytest.mark.parametrize("name", ["1abc", "flags.eu"])
def test_a_release_s_name_has_to_be_one_of_a_service(name: str) -> None:
    done = tool("helm", "template", name, str(CHART), "--values", str(VALUES[0]))
    assert f"the release's name {name} can't be the name of a Service" in done.stderr


@pytest.mark.parametrize(
    "key",
    [
        *(
            "collector",
            "extensions",
            "mode",
            "networkPolicy",
            "podAnnotations",
            "podLabels",
            "restartOnChange",
            "server",
        ),
        *("service", "serviceMonitor", "telemetry", "terminationGracePeriodSeconds", "volume"),
    ],
)
def test_what_the_chart_needs_can_not_be_removed(key: str) -> None:
    """For example the time after which connections end, which is longer than the service's own."""
    assert f"{key}: is null, which removes what the chart has there" in refused(VALUES[0], f"{key}=null")


@pytest.mark.parametrize("size", ["10G", "1.5Gi", "500Mi", "0.5Gi"])
def test_kubernetes_sizes_are_taken(size: str, tmp_path: Path) -> None:
    valid(["--values", str(VALUES[0]), "--set", f"volume.size={size}"], tmp_path)


def refused(values: Path, wrong: str) -> str:
    done = tool("helm", "template", "changes", str(CHART), "--values", str(values), "--set", wrong)
    assert done.returncode != 0
    return done.stderr


def test_mode_kafka_needs_brokers_in_its_list() -> None:
    options = ["--values", str(VALUES[1]), "--set-json", "exporters.kafka.brokers=[]"]
    done = tool("helm", "template", "changes", str(CHART), *options)
    assert "exporters.kafka.brokers: is empty" in done.stderr
