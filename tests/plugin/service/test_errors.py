"""What is wrong with settings, mappings, types and directories is one kind of error, in the words of code."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.config import ConfigError, Opaque, Settings
from statsig_otel.exporters import DebugSettings, ExporterType, FileSettings, OtlpHttpSettings, Outcome
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.plugin import (
    Destination,
    LogRecordEncoder,
    Mapper,
    SendingQueueSettings,
    Service,
    StatsigReceiverSettings,
    Verifier,
    parse,
    sign,
)
from statsig_otel.plugin.server.tls import ServerTlsSettings
from statsig_otel.plugin.settings.exporters import BatchSettings
from tests.looped import looped
from tests.plugin.services import SECRET, Keeper, change_body, post_change, service

RECEIVER = StatsigReceiverSettings(signing_secrets=[SECRET], endpoint="127.0.0.1:0")


def made(**arguments: Any) -> Service:
    given = {"receivers": {"statsig": RECEIVER}, "exporters": {"debug": DebugSettings()}, "directory": "queue"}
    return Service(**{**given, **arguments})


HTTP = OtlpHttpSettings(endpoint="https://h")
WRONG: list[tuple[Callable[[], object], str]] = [
    (
        lambda: OtlpHttpSettings(endpoint="https://h", hedaers={}),  # type: ignore[call-arg]
        "hedaers: unknown key\n  hint: did you mean headers?",
    ),
    (OtlpHttpSettings, "OtlpHttpSettings: needs an endpoint, such as http://localhost:4318, or a logs_endpoint"),
    (lambda: SendingQueueSettings(batch=BatchSettings(max_size=0)), "max_size: must be more than 0\n"),
    (
        lambda: SendingQueueSettings.model_validate({"batch": {"max_size": 0}}),
        "batch::max_size: must be more than 0\n",
    ),
    (lambda: ClientTlsSettings(cert_file="x"), "ClientTlsSettings: a client certificate needs its private key"),
    (
        lambda: made(receivers={"statsig": {}}),
        'receivers::statsig::signing_secrets: is required\n  hint: write [os.environ["STATSIG_SIGNING_SECRET"]]',
    ),
    (lambda: made(exporters={"nope": {}}), "exporters::nope: there is no exporter of the type 'nope'\n  hint: there"),
    (lambda: made(exporters={"nope": HTTP}), "exporters::nope: there is no exporter of the type 'nope'\n  hint: there"),
    (lambda: made().receiver("nope"), "receivers::nope: there is no such receiver\n  hint: there are: statsig"),
    (
        lambda: StatsigReceiverSettings(signing_secrets="webhook-a"),
        "signing_secrets: must be a list\n  hint: write [A, B]",
    ),
    (
        lambda: StatsigReceiverSettings(signing_secrets=[SECRET], include_change_details="yes"),  # type: ignore[arg-type]
        "include_change_details: must be True or False\n  hint: write True",
    ),
    (
        lambda: StatsigReceiverSettings(signing_secrets=[SECRET], include_original="yes"),  # type: ignore[arg-type]
        "include_original: must be True, False or redacted\n  hint: write True",
    ),
    (
        lambda: StatsigReceiverSettings(signing_secrets=[SECRET], mapping={"body": "{statsig.change.kind}"}),  # type: ignore[arg-type]
        (
            "mapping::body: has {statsig.change.kind}, which no change has without include_change_details\n"
            "  hint: set include_change_details=True"
        ),
    ),
    (
        lambda: StatsigReceiverSettings(signing_secrets=[SECRET], user="drop", include_original=True),
        "StatsigReceiverSettings: include_original=True would show the users that user: drop hides",
    ),
    (
        lambda: made(receivers={"statsig": {"signing_secrets": SECRET, "resource": "a"}}),
        (
            "receivers::statsig::signing_secrets: must be a list\n  hint: write [A, B]\n"
            'receivers::statsig::resource: must be a mapping\n  hint: write {"KEY": VALUE}'
        ),
    ),
    (
        lambda: made(exporters={"debug": {"sending_queue": False}}),
        'exporters::debug::sending_queue: must be a mapping\n  hint: write {"enabled": False}',
    ),
    (
        lambda: made(pipelines={}),
        'pipelines: is empty\n  hint: give {"logs": {"receivers": [...], "exporters": [...]}}, or None',
    ),
    (lambda: made(receivers={}), "receivers: is empty\n  hint: name at least one receiver"),
    (lambda: made(pipelines={"logs": 5}), 'pipelines::logs: must be a mapping\n  hint: give {"logs": {"receivers": ['),
    (
        lambda: made(pipelines={"logs": {"receivers": [], "exporters": ["debug"]}}),
        (
            "pipelines::logs::receivers: is empty\n  hint: name at least one receiver\n"
            "receivers::statsig: is not used by any pipeline\n  hint: add it to pipelines::logs::receivers, or remove"
        ),
    ),
    (lambda: made(exporters={"own": None}), "exporters::own: is None instead of an exporter\n  hint: give an object"),
    (lambda: made(exporters={"own": Destination(None)}), "exporters::own: is None instead of an exporter\n  hint: "),  # type: ignore[arg-type]
    (
        lambda: made(exporters={"own": {"url": "https://h"}}),
        (
            "exporters::own: there is no exporter of the type 'own'\n  hint: there are: debug, file, kafka, otlp_grpc, "
            "otlp_http; give an object that has start, send and shutdown as an exporter of your own, or send OTLP"
        ),
    ),
    (
        lambda: OtlpHttpSettings(endpoint="https://h", timeout="5"),  # type: ignore[arg-type]
        "timeout: must be a number of seconds, or a duration such as 30s, 500ms or 1h30m\n  hint: it needs a unit",
    ),
    (
        lambda: OtlpHttpSettings(endpoint="https://h", sending_queue={"enabled": False}),  # type: ignore[call-arg]
        "sending_queue: unknown key\n  hint: did you mean Destination(..., sending_queue=...) around these settings?",
    ),
    (
        lambda: DebugSettings(retry_on_failure={}),  # type: ignore[call-arg]
        "retry_on_failure: unknown key\n  hint: did you mean Destination(..., retry_on_failure=...)",
    ),
    (lambda: made(environ={"OTEL_SERVICE_NAME": 3}), "environ::OTEL_SERVICE_NAME: must be a string"),
    (lambda: made(directory="a\0b"), "directory: contains a control character, such as a line break"),
]


@looped(("make", "said"), WRONG)
def test_settings_and_mappings_say_what_is_wrong_where_and_what_to_do(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(said)
    assert isinstance(caught.value, ValueError)


class ChatSettings(Settings):
    """Of another distribution, which tells that they are an exporter's."""

    room: str = ""


CHAT = ExporterType(ChatSettings, lambda _name, _settings: Keeper())


def test_how_an_exporter_of_another_distribution_is_fed_is_said_around_its_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        ChatSettings(sending_queue={"enabled": False})  # type: ignore[call-arg]
    assert str(caught.value) == (
        "sending_queue: unknown key\n  hint: did you mean Destination(..., sending_queue=...) around these settings?"
    )


class Absent(Keeper):
    """An exporter whose file is not there."""

    def start(self) -> None:
        raise FileNotFoundError("there is no file titles.txt")


@pytest.mark.parametrize("is_queued", [True, False])
def test_an_exporter_that_can_not_be_started_is_named(tmp_path: Path, *, is_queued: bool) -> None:
    """Its files are a part of the settings; only an exporter of one's own may fail in another way."""
    absent = tmp_path / "absent"
    queue = SendingQueueSettings(enabled=is_queued)
    of_settings = {
        "otlp_http/a": OtlpHttpSettings(endpoint="https://h", tls=ClientTlsSettings(ca_file=str(absent))),
        "debug": DebugSettings(),
        "file/b": FileSettings(path=absent / "changes.jsonl"),
    }
    with pytest.raises(ConfigError) as caught:
        made(
            exporters={name: Destination(one, sending_queue=queue) for name, one in of_settings.items()},
            directory=tmp_path / "queue",
        ).start()
    assert str(caught.value) == (
        f"exporters::otlp_http/a::tls::ca_file: {absent} can't be read: No such file or directory\n"
        "  hint: the service reads it as its own user; check the path and the permissions\n"
        f"exporters::file/b::path: there is no directory {absent}\n  hint: create it: the exporter does not"
    )
    own = {"debug": DebugSettings(), "own": Destination(Absent(), sending_queue=queue)}
    with pytest.raises(OSError, match=r"exporters::own: can't be started: there is no file titles\.txt") as other:
        made(exporters=own, directory=tmp_path / "queue").start()
    assert not isinstance(other.value, ConfigError)


def test_a_certificate_of_a_server_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    tls = ServerTlsSettings(cert_file=tmp_path / "absent.pem", key_file=tmp_path / "absent.key")
    receiver = StatsigReceiverSettings(signing_secrets=[SECRET], endpoint="127.0.0.1:0", tls=tls)
    with pytest.raises(ConfigError) as caught:
        made(receivers={"statsig": receiver}, directory=tmp_path / "queue").start()
    assert str(caught.value).startswith(f"receivers::statsig::tls::cert_file: {tmp_path / 'absent.pem'} can't be read")


def test_a_directory_that_can_not_be_one_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError) as caught:
            made(directory=directory).start()
        assert str(caught.value).startswith(f"directory: {tmp_path / 'file'} is not a directory\n  hint: name another")
    (tmp_path / "queue").mkdir()
    os.mkfifo(tmp_path / "queue" / "lock")
    with pytest.raises(ConfigError, match=r"directory: .*/queue/lock is a pipe or a device"):
        made(directory=tmp_path / "queue").start()
    said = (
        "/proc/nothing can't be used: No such file or directory"
        if os.geteuid() == 0
        else "/proc can't be written by uid"
    )
    with pytest.raises(ConfigError, match=f"directory: {said}"):
        made(directory="/proc/nothing").start()
    config = tmp_path / "config.yaml"
    config.write_text(
        "receivers: {statsig: {signing_secrets: [], endpoint: '127.0.0.1:0'}}\nexporters: {debug: }\n"
        "extensions:\n  file_storage: {directory: file}\n"
        "service: {extensions: [file_storage], pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        Service.from_file(config, environ={}).start()
    assert str(caught.value).startswith(
        f"extensions::file_storage::directory: {tmp_path / 'file'} is not a directory ({config}:4)"
    )


def test_an_address_is_known_after_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the server does not listen yet"):
        _ = service(tmp_path, {"debug": DebugSettings()}).urls


REFERENCES = [
    *("${env:TOKEN}", "Bearer ${env:TOKEN}", "${file:/run/token}", "${TOKEN}", "${dt_token}", "${token:-x}"),
    *("${DT-TOKEN}", "${dt.token}", "${vault:x}", "${yaml:x}", "${secret/path}", "${ env:X }", "${}", "${x", "$$${x}"),
]
SAID = "contains ${, with which a reference begins: references are resolved in files only\n  hint: give the value"


@pytest.mark.parametrize("written", REFERENCES)
def test_a_reference_in_code_is_no_secret(written: str) -> None:
    """It stands for something in files only. As a literal it would be refused by Statsig, or by the backend."""
    http = {"endpoint": "https://h", "headers": {"authorization": written}}
    for arguments, path in (
        ({"receivers": {"statsig": {"signing_secrets": [SECRET, written]}}}, "receivers::statsig::signing_secrets[1]"),
        ({"exporters": {"otlp_http": http}}, "exporters::otlp_http::headers::authorization"),
        ({"exporters": {"otlp_http": Destination(http)}}, "exporters::otlp_http::headers::authorization"),  # type: ignore[arg-type]
        ({"exporters": {"file": {"path": written}}}, "exporters::file::path"),
        ({"resource": {"a": written}}, "resource::a"),
        ({"directory": written}, "directory"),
        ({"directory": Path(written)}, "directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            made(**arguments)
        (problem,) = caught.value.problems
        assert str(problem).startswith(f"{path}: {SAID}")
    with pytest.raises(ConfigError, match=r"^environ::OTEL_RESOURCE_ATTRIBUTES: contains \$.*\n  hint: .*%24\{"):
        made(environ={"OTEL_RESOURCE_ATTRIBUTES": f"a={written}"})


def test_a_home_directory_is_not_guessed() -> None:
    for path in ("~", "~/queue", "~root/queue", Path("~/queue")):
        made_with: dict[str, Callable[[Any], object]] = {
            "directory": lambda path: made(directory=path),
            "exporters::file::path": lambda path: made(exporters={"file": {"path": str(path)}}),
            "path": lambda path: FileSettings(path=path),
            "key_file": lambda path: ServerTlsSettings(cert_file=Path("a"), key_file=path),
            "ca_file": lambda path: ClientTlsSettings(ca_file=str(path)),
        }
        for where, make in made_with.items():
            with pytest.raises(
                ConfigError, match=rf"^{where}: begins with ~, .*\n  hint: give the whole path, or in code Path\("
            ):
                make(path)
    made(directory="a~/~")


def test_the_environment_is_a_mapping() -> None:
    nothing: Any = None
    makes: list[Callable[[], object]] = [
        lambda: made(environ=["A=B"]),
        lambda: Service.from_file("yaml:receivers: {}", environ=nothing),
    ]
    for make in makes:
        with pytest.raises(ConfigError, match=r"^environ: must be a mapping\n  hint: give os\.environ"):
            make()


@looped("written", REFERENCES)
def test_settings_refuse_it_too(written: str) -> None:
    path = Path(written)
    makes: dict[str, Callable[[], object]] = {
        "signing_secrets[0]": lambda: StatsigReceiverSettings(signing_secrets=[written]),
        "hash_key": lambda: StatsigReceiverSettings(signing_secrets=[], user="hash", hash_key=written),
        "resource::a": lambda: StatsigReceiverSettings(signing_secrets=[], resource={"a": written}),
        "headers::a": lambda: OtlpHttpSettings(endpoint="https://h", headers={"a": written}),
        "headers::b": lambda: OtlpHttpSettings(endpoint="https://h", headers={"b": Opaque(written)}),
        "resource::b[0]": lambda: StatsigReceiverSettings(signing_secrets=[], resource={"b": (x for x in [written])}),  # type: ignore[dict-item]
        "resource::c": lambda: StatsigReceiverSettings(signing_secrets=[], resource={"c": written.encode()}),  # type: ignore[dict-item]
        "path": lambda: FileSettings(path=path),
        "key_file": lambda: ServerTlsSettings(cert_file=Path("chain.pem"), key_file=path),
        "headers::j": lambda: OtlpHttpSettings.model_validate_json(
            json.dumps({"endpoint": "https://h", "headers": {"j": written}})
        ),
        "cert_file": lambda: ServerTlsSettings.model_validate_strings({"cert_file": written, "key_file": "key.pem"}),
        "headers::k": lambda: OtlpHttpSettings(endpoint="https://h").model_copy(update={"headers": {"k": written}}),
        "tls::ca_file": lambda: OtlpHttpSettings.model_validate({"endpoint": "https://h", "tls": {"ca_file": written}}),
    }
    for where, make in makes.items():
        with pytest.raises(ConfigError) as caught:
            make()
        (problem,) = caught.value.problems
        assert str(problem).startswith(f"{where}: {SAID}")
    encoders: list[Callable[[Any], object]] = [
        RECEIVER.mapper,
        lambda resource: RECEIVER.intake("statsig", resource),
        lambda resource: LogRecordEncoder(resource=resource),
    ]
    for make_encoder in encoders:
        for value in (written, ["b", written]):
            with pytest.raises(ConfigError, match=r"^resource::a(\[1\])?: contains \$"):
                make_encoder({"a": value})
    with pytest.raises(ConfigError, match=r"^hash_key: contains \$"):
        LogRecordEncoder(user="hash", hash_key=written)
    with pytest.raises(ValueError, match=r"^a signing secret contains \$\{, which no signing secret contains"):
        Verifier([written])
    with pytest.raises(ValueError, match=r"^secret contains \$\{, which no signing secret contains"):
        sign(b"", secret=written, timestamp_ms=1)


def resource_of(mapper: Mapper) -> dict[str, str]:
    (change,) = mapper.map(parse(change_body("layout")), 1).changes
    (logs,) = ExportLogsServiceRequest.FromString(change.records[0]).resource_logs
    return {one.key: one.value.string_value for one in logs.resource.attributes}


class Payloads(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[bytes] = []

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.payloads.append(payload)
        return super().send(payload, count, timeout)


def test_other_dollars_are_only_characters() -> None:
    settings = OtlpHttpSettings(endpoint="https://h", headers={"a": "pa$$w$ord$5}", "b": "$x", "c": "$${x}"})
    assert settings.headers == {"a": Opaque("pa$$w$ord$5}"), "b": Opaque("$x"), "c": Opaque("${x}")}
    assert FileSettings(path=Path("$${x")).path == Path("${x").absolute()
    written = {"a": "$5 $${ $$x $${x} {name}"}
    read = {"a": "$5 ${ $$x ${x} {name}", "service.name": "statsig"}
    receiver = {"signing_secrets": [SECRET], "resource": written, "mapping": {"body": "$$ $${name}"}}
    assert resource_of(StatsigReceiverSettings.model_validate(receiver).mapper()) == read
    assert resource_of(RECEIVER.mapper(written)) == read
    assert resource_of(Mapper(LogRecordEncoder(resource={**written, "service.name": "statsig"}))) == read
    exporter = Payloads()
    with made(
        receivers={"statsig": {**receiver, "endpoint": "127.0.0.1:0"}},
        exporters={"own": Destination(exporter, sending_queue={"enabled": False})},
        directory=None,
        resource={"b": "$${b}"},
        environ={"OTEL_RESOURCE_ATTRIBUTES": "c=$$%24{c}"},
    ) as running:
        assert post_change(running, "layout").status == 200
    (logs,) = ExportLogsServiceRequest.FromString(exporter.payloads[0]).resource_logs
    found = {one.key: one.value.string_value for one in logs.resource.attributes}
    assert found == {**read, "b": "${b}", "c": "$$${c}"}
    assert logs.scope_logs[0].log_records[0].body.string_value == "$$ $layout"


def test_a_mapper_reads_the_resource_of_the_environment_as_a_service_does() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "a=b,c=d,broken,e=%24{e}", "OTEL_SERVICE_NAME": "flags"}
    settings = StatsigReceiverSettings(signing_secrets=[SECRET], endpoint="127.0.0.1:0", resource={"c": "own"})
    exporter = Payloads()
    unqueued = Destination(exporter, sending_queue={"enabled": False})
    exporters, resource = {"own": unqueued}, {"f": "$${f}"}
    with made(
        receivers={"statsig": settings}, exporters=exporters, directory=None, resource=resource, environ=environ
    ) as running:
        assert post_change(running, "layout").status == 200
    (logs,) = ExportLogsServiceRequest.FromString(exporter.payloads[0]).resource_logs
    found = {one.key: one.value.string_value for one in logs.resource.attributes}
    assert found == {"service.name": "flags", "a": "b", "c": "own", "e": "${e}", "f": "${f}"}
    assert resource_of(settings.mapper(resource, environ=environ)) == found
    assert resource_of(settings.intake("statsig", resource, environ=environ).mapper) == found
    assert resource_of(settings.mapper({"service.name": "x"}, environ=environ))["service.name"] == "x"
    assert resource_of(settings.mapper()) == {"service.name": "statsig", "c": "own"}
    for wrong, said in (
        ({"OTEL_SERVICE_NAME": "${X}"}, r"environ::OTEL_SERVICE_NAME: contains \$"),
        ({"OTEL_SERVICE_NAME": 3}, "environ::OTEL_SERVICE_NAME: must be a string"),
        ("PATH", "environ: must be a mapping"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings.mapper(environ=wrong)  # type: ignore[arg-type]


def test_a_file_and_a_variable_give_the_value_itself(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "receivers: {statsig: {signing_secrets: ['${SECRET}'], user: hash, hash_key: '${V}', resource: {b: '$${x}'}}}\n"
        "exporters: {otlp_http: {endpoint: 'https://h', headers: {a: '$${x}', b: '${V}'}}}\n"
        "extensions: {file_storage: {directory: queue}}\n"
        "service:\n  extensions: [file_storage]\n"
        "  pipelines: {logs: {receivers: [statsig], exporters: [otlp_http]}}\n"
    )
    environ = {"SECRET": SECRET, "V": "${y}", "OTEL_RESOURCE_ATTRIBUTES": "a=${b}"}
    Service.from_file(config, environ=environ, listen=False)
    for secret in ("webhook-${abc}", "$${abc}"):
        with pytest.raises(ConfigError, match=r"signing_secrets\[0\]: contains \$\{, which no signing secret contains"):
            Service.from_file(config, environ={**environ, "SECRET": secret}, listen=False)
