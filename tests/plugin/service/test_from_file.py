"""A service from files, in code: what it reads, what it reads again, and what a URL is for."""

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin import DEFAULT_PATH, RestartNeededError, Service, StatsigReceiverSettings
from statsig_otel.plugin.control.socket import call
from statsig_otel.plugin.service import reload
from tests.conftest import needs_kafka
from tests.looped import looped
from tests.peers.certs import Authority
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.plugin.services import SECRET, Keeper, address_of, post_change, service
from tests.waiting import wait_until

OTHER = "webhook-another-0123456789"

FILE = """
receivers:
  statsig:
    endpoint: ${env:ENDPOINT}
    signing_secrets: ["${file:secret}"]
exporters:
  file:
    path: ${env:FOLDER}/changes.jsonl
extensions:
  file_storage: {directory: "${env:FOLDER}/queue", min_free_bytes: 0}
service:
  extensions: [file_storage]
  pipelines:
    logs: {receivers: [statsig], exporters: [file]}
"""

Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes services from `config.yaml`, whose secret is in the file `secret` beside it."""
    (tmp_path / "config.yaml").write_text(FILE)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    environ = {"ENDPOINT": "127.0.0.1:0", "FOLDER": str(tmp_path), "OTEL_SERVICE_NAME": "host"}

    def of(*more: str, **options: Any) -> Service:
        return Service.from_file(tmp_path / "config.yaml", *more, **{"environ": environ, **options})

    return of


def test_files_the_environment_and_files_in_it_are_read_as_on_the_command_line(make: Make, tmp_path: Path) -> None:
    with make("yaml:exporters::file/more: {path: '${env:FOLDER}/more.jsonl'}",
              "yaml:service::pipelines::logs::exporters: [file, file/more]") as running:  # fmt: skip
        assert post_change(running, "a").status == 200
    for name in ("changes.jsonl", "more.jsonl"):
        (line,) = (tmp_path / name).read_text().splitlines()
        assert "a updated" in line
        assert '"stringValue":"host"' in line


def test_what_is_wrong_has_its_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FILE.replace("path:", "paht:"))
    with pytest.raises(ConfigError, match=r"exporters::file::paht: unknown key \(.*config.yaml:8\)"):
        make()
    (tmp_path / "config.yaml").write_text(FILE)
    with pytest.raises(ConfigError, match=r"(?s)receivers::statsig::endpoint: .*ENDPOINT.*config.yaml:4"):
        make(environ={"FOLDER": str(tmp_path)})


def test_mounted_it_says_which_keys_are_not_used(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make(listen=False)
    (warning,) = caplog.messages
    assert warning.startswith("receivers::statsig::endpoint: is not used: the service does not listen (")
    assert warning.endswith("config.yaml:4)")


def test_a_reload_takes_over_what_changed(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = make()
    with pytest.raises(RestartNeededError, match="has not started"):
        running.reload()
    assert "Reload: nothing has changed: the service has not started" in caplog.text
    caplog.set_level(logging.INFO, "statsig_otel")
    with running:
        assert running.reload() == []
        (tmp_path / "config.yaml").write_text(FILE.replace("changes.jsonl", "other.jsonl"))
        assert running.reload() == ["exporters::file: has changed"]
        assert "Reload: exporters::file: has changed" in caplog.text
        assert post_change(running, "a").status == 200
        (tmp_path / "config.yaml").write_text(FILE.replace("signing_secrets", "path: /other\n    signing_secrets"))
        with pytest.raises(RestartNeededError, match="receivers::statsig::path"):
            running.reload()
        (tmp_path / "config.yaml").write_text("receivers: [")
        with pytest.raises(ConfigError, match=r"config.yaml"):
            running.reload()
        # From outside it is the same.
        (tmp_path / "config.yaml").write_text(FILE)
        assert call(tmp_path / "queue" / CONTROL, "reload") == {
            "changes": ["exporters::file: has changed"],
            "failures": [],
        }
        assert post_change(running, "b").status == 200
    assert "a updated" in (tmp_path / "other.jsonl").read_text()
    assert "b updated" in (tmp_path / "changes.jsonl").read_text()


def test_a_changed_file_of_a_secret_counts_without_a_reload(make: Make, tmp_path: Path) -> None:
    with make() as running:
        assert post_change(running, "a", secret=OTHER).status == 401
        (tmp_path / "secret").write_text(OTHER)
        wait_until(lambda: post_change(running, "a", secret=OTHER).status == 200)
        assert post_change(running, "a").status == 401


def test_a_look_at_the_files_that_fails_is_not_the_last_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = threading.Semaphore(0)

    def too_little(_: reload.Reloader) -> None:
        looks.release()
        raise MemoryError

    with make() as running:
        with monkeypatch.context() as short:
            short.setattr(reload.Reloader, "use_changed_secrets", too_little)
            assert looks.acquire(timeout=30)
            assert looks.acquire(timeout=30)
        (tmp_path / "secret").write_text(OTHER)
        wait_until(lambda: post_change(running, "a", secret=OTHER).status == 200)
    assert caplog.text.count("Changed files of secrets or certificates can't be used now") == 1


def test_a_secret_s_file_with_a_doubtful_one_is_told(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make() as running:
        for secret in ("x", "webhook-x"):
            (tmp_path / "secret").write_text(secret)
            running._reloader.use_changed_secrets()
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    place = "receivers::statsig::signing_secrets[0]: "
    assert [line.partition(",")[0] for line in said if line.startswith(place)] == [
        f"{place}does not begin with webhook-",
        f"{place}has only 9 characters",
    ]


def test_a_reload_forgets_the_secret_that_was_used_last_only_with_the_secrets(make: Make, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FILE)
    with make() as running:

        def last_after(config: str) -> object:
            (tmp_path / "config.yaml").write_text(config)
            running.reload()
            return call(tmp_path / "queue" / CONTROL, "queue")["receivers"]["statsig"]["last_secret"]

        assert post_change(running, "a").status == 200
        assert last_after(FILE) == 1
        assert last_after(FILE.replace("signing_secrets:", "user: drop\n    signing_secrets:")) == 1
        assert last_after(FILE.replace('"${file:secret}"', '"${file:secret}", "webhook-another-one"')) is None
        assert post_change(running, "b").status == 200


@pytest.mark.slow
def test_a_rotation_of_a_secret(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the page says: an empty place first, then the new secret in it. The log and `queue` say which one counts."""
    caplog.set_level(logging.INFO, "statsig_otel")
    (tmp_path / "config.yaml").write_text(FILE.replace('"${file:secret}"', '"${file:secret}", "${file:next}"'))
    (tmp_path / "next").touch()
    with make() as running:

        def last() -> object:
            return call(tmp_path / "queue" / CONTROL, "queue")["receivers"]["statsig"]["last_secret"]

        assert [post_change(running, "a").status, post_change(running, "a", secret=OTHER).status] == [200, 401]
        assert last() == 1
        (tmp_path / "next").write_text(f"{OTHER}\n")
        wait_until(lambda: post_change(running, "b", secret=OTHER).status == 200)
        assert last() == 2
        assert post_change(running, "c").status == 200
        assert "signing_secrets[1]: is a new secret, valid from now on" in caplog.text
        assert "statsig: the last webhook was verified with secret 2 of the 2 in signing_secrets" in caplog.text
        (tmp_path / "secret").write_text(OTHER)
        (tmp_path / "next").write_text("")
        wait_until(lambda: "signing_secrets[1]: is empty now" in caplog.text)
        assert [post_change(running, "d").status, post_change(running, "d", secret=OTHER).status] == [401, 200]
        (tmp_path / "secret").write_text("")
        wait_until(lambda: "signing_secrets[0]: is empty; the secrets of statsig stay as they were" in caplog.text)
        assert post_change(running, "e", secret=OTHER).status == 200


@pytest.mark.parametrize(
    ("form", "is_watched"), [("{authorization: %s}", True), ("[{name: authorization, value: %s}]", False)]
)
def test_a_changed_file_of_an_exporter_s_header_counts_without_a_reload(
    make: Make,
    tmp_path: Path,
    form: str,
    is_watched: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The exporter is blocked by 401, and tries again at once, or at `queue resume`."""
    caplog.set_level(logging.INFO, "statsig_otel")
    key = tmp_path / "key"
    key.write_text("old-key-old-key")
    with HttpSink() as sink, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "_INTERVAL", 0.05 if is_watched else 3600.0)
        sink.answer = lambda got: HttpAnswer(200 if got.headers["authorization"] == "Bearer new-key" else 401)
        headers = form % '"Bearer ${file:key}"'
        exporter = f"{{endpoint: {sink.url}, headers: {headers}}}"
        text = FILE.replace("\n  file:\n    path: ${env:FOLDER}/changes.jsonl", f"\n  otlp_http: {exporter}")
        (tmp_path / "config.yaml").write_text(text.replace("exporters: [file]", "exporters: [otlp_http]"))
        with make() as running:
            assert post_change(running, "a").status == 200
            wait_until(lambda: "otlp_http is blocked" in caplog.text)
            if is_watched:  # a file that can't be used changes nothing
                key.unlink()
                wait_until(lambda: "otlp_http keeps the headers that it has" in caplog.text)
            key.write_text("new-key")
            if not is_watched:
                call(tmp_path / "queue" / CONTROL, "queue resume", exporter="otlp_http")
            wait_until(lambda: "otlp_http answers again" in caplog.text)
            wait_until(lambda: "otlp_http: the files of its headers have changed" in caplog.text)
    assert "old-key-old-key" not in caplog.text
    assert [got.headers["authorization"] for got in sink.requests][-1] == "Bearer new-key"


def test_a_recovery_by_a_reload_is_a_line_of_the_log(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another sender takes the place of the one that was blocked, and says that it is over."""
    with HttpSink() as wrong, HttpSink() as right:
        wrong.answer = HttpAnswer(404)
        text = FILE.replace("  file:\n    path: ${env:FOLDER}/changes.jsonl", f"  otlp_http: {{endpoint: {wrong.url}}}")
        text = text.replace("exporters: [file]", "exporters: [otlp_http]")
        (tmp_path / "config.yaml").write_text(text)
        with make() as running:
            assert post_change(running, "a").status == 200
            wait_until(lambda: "otlp_http is blocked" in caplog.text)
            (tmp_path / "config.yaml").write_text(text.replace(wrong.url, right.url))
            running.reload()
            wait_until(lambda: "otlp_http answers again" in caplog.text)
        assert len(right.records) == 1
    assert caplog.text.count("otlp_http answers again") == 1


def test_secrets_in_files_are_changed_there(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"(?s)made from files.*hint: change them there"):
        make().rotate_secrets("statsig", [OTHER])


class Served:
    """A service with TLS that is made in code, whose certificate is written again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority()
        self._trusting = ssl.create_default_context(cafile=self._authority.write(folder))
        cert_file, key_file = self.issue()
        tls = {"cert_file": cert_file, "key_file": key_file}
        self.service = service(folder / "queue", {"mine": Keeper()}, receiver={"tls": tls})

    def issue(self) -> tuple[str, str]:
        return self._authority.issue("127.0.0.1").write(self._folder)

    def certificate(self) -> str:
        """The serial number of the certificate that a client is shown."""
        with (
            socket.create_connection(address_of(self.service), 10) as plain,
            self._trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return str((secure.getpeercert() or {})["serialNumber"])


def test_of_a_service_made_in_code_a_reload_renews_the_certificates(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with pytest.raises(RestartNeededError, match="has not started"):
        served.service.reload()
    with served.service:
        first = served.certificate()
        assert served.service.reload() == []
        served.issue()
        assert served.service.reload() == ["receivers::statsig::tls: its files have changed"]
        assert served.certificate() != first
        assert call(tmp_path / "queue" / CONTROL, "reload") == {"changes": [], "failures": []}
        (tmp_path / "leaf.key").write_text("no key")
        for kind in (OSError, ValueError):
            with pytest.raises(kind, match=r"^receivers::statsig: its certificates were not renewed: tls: "):
                served.service.reload()
    with pytest.raises(RestartNeededError, match="is shutting down"):
        served.service.reload()


@pytest.mark.slow
def test_of_a_service_made_in_code_the_certificates_are_watched(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with served.service:
        first = served.certificate()
        served.issue()
        wait_until(lambda: served.certificate() != first)


@pytest.mark.usefixtures("make")
def test_a_program_may_change_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"ENDPOINT": "127.0.0.1:0", "FOLDER": str(tmp_path)}
    (tmp_path / "more").write_text(OTHER)
    more = 'yaml:receivers::statsig::signing_secrets: ["${file:secret}", "${file:more}"]'
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for locations in (["config.yaml"], ["file:config.yaml"], [Path("config.yaml")], ["config.yaml", more]):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "secret").write_text(SECRET)
        made = Service.from_file(*locations, environ=environ)
        monkeypatch.chdir(tmp_path / "elsewhere")
        with made as running:
            assert made.reload() == []
            (tmp_path / "secret").write_text(OTHER[::-1])
            assert len(made.reload()) == 1
            assert post_change(running, "a", secret=OTHER[::-1]).status == 200


def test_a_url_may_have_a_port_and_any_path(make: Make) -> None:
    for url in ("http://h:8080", "HTTPS://[::1]:443/a", "https://a-b_c.example.com/%20/~x/;y=1"):
        assert make(listen=False, url=url).urls == {"statsig": f"{url}{DEFAULT_PATH}"}


@pytest.mark.parametrize("url", ["https://flags.example.com/statsig", "https://flags.example.com/statsig/"])
def test_a_mounted_service_can_be_told_its_url(make: Make, url: str) -> None:
    with pytest.raises(RuntimeError, match="this service does not listen"):
        _ = make(listen=False).urls
    assert make(listen=False, url=url).urls == {"statsig": f"https://flags.example.com/statsig{DEFAULT_PATH}"}


def test_a_url_that_ends_with_the_path_of_a_receiver_is_named(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make(listen=False, url=f"https://h{DEFAULT_PATH}")
    assert f"the path of statsig, whose URL is then https://h{DEFAULT_PATH}{DEFAULT_PATH}" in caplog.text


@looped(
    "url",
    [
        "flags.example.com", "ftp://flags.example.com", "https://", "https://[", "https://a?b", "https://h/?", "https://h/p#",
        "https://h:abc", "https://h:0", "https://h:65536", " https://h", "https://h/a b", "https://u:p@h",
    ],
)  # fmt: skip
def test_what_is_not_a_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"url: must be a URL\n  hint: write it as https://host/prefix"):
        Service(
            receivers={"statsig": StatsigReceiverSettings(signing_secrets=[])},
            exporters={"mine": Keeper()},
            directory=tmp_path,
            url=url,
        )


def test_a_reference_in_a_url_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"url: contains \$\{, .* nothing resolves it\n  hint: give the value itself"):
        make(url="${env:URL}")


def test_receivers_of_a_service_that_does_not_listen_have_paths_of_their_own() -> None:
    """They are parts of one application, whatever their endpoints are."""
    receivers = "receivers: {statsig: {signing_secrets: []}, statsig/b: {signing_secrets: [], endpoint: 'localhost:1'}}"
    pipeline = "service::pipelines::logs: {receivers: [statsig, statsig/b], exporters: [debug]}"
    sources = [f"yaml:{source}" for source in (receivers, "exporters: {debug: {}}", pipeline)]
    Service.from_file(*sources, environ={})
    with pytest.raises(ConfigError) as caught:
        Service.from_file(*sources, environ={}, listen=False)
    assert "receivers::statsig/b::path: is the path of receivers::statsig too\n" in str(caught.value)


@needs_kafka
def test_files_that_can_not_be_used_keep_no_other_secret_from_being_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One receiver and one exporter have a new secret: the log names both, and each of those that keep their own."""
    caplog.set_level(logging.INFO, "statsig_otel")
    monkeypatch.setattr(reload, "_INTERVAL", 3600.0)
    files = {name: tmp_path / name for name in ("here", "eu", "key", "token", "odd", "none", "password", "ca")}
    for file in files.values():
        file.write_text(SECRET)
    files["ca"].write_bytes(Authority().pem)
    (tmp_path / "config.yaml").write_text("""
receivers:
  statsig: {endpoint: "127.0.0.1:0", signing_secrets: ["${file:here}"]}
  statsig/eu: {endpoint: "127.0.0.1:0", path: /eu, signing_secrets: ["${file:eu}"]}
exporters:
  otlp_http/a: {endpoint: "http://127.0.0.1:1", headers: {key: "${file:key}"}}
  otlp_http/b: {endpoint: "http://127.0.0.1:1", headers: {key: "${file:token}"}}
  otlp_http/c: {endpoint: "http://127.0.0.1:1", headers: {key: "${file:odd}"}}
  otlp_grpc/d: {endpoint: "http://127.0.0.1:1", headers: {key: "${file:none}"}}
  otlp_http/e: {endpoint: "https://127.0.0.1:1", headers: {key: "${file:token}"}, tls: {ca_pem: "${file:ca}"}}
  kafka/f:
    brokers: ["127.0.0.1:1"]
    timeout: 200ms
    auth: {sasl: {mechanism: PLAIN, username: u, password: "${file:password}"}}
extensions: {file_storage: {directory: queue, min_free_bytes: 0}}
service:
  extensions: [file_storage]
  pipelines:
    logs:
      receivers: [statsig, statsig/eu]
      exporters: [otlp_http/a, otlp_http/b, otlp_http/c, otlp_grpc/d, otlp_http/e, kafka/f]
""")
    with Service.from_file(tmp_path / "config.yaml", environ={}) as running:
        files["here"].write_text(OTHER)
        files["eu"].unlink()
        files["key"].unlink()
        files["token"].write_text(OTHER)
        files["odd"].write_text("a\x01b")
        files["none"].write_text("")
        files["password"].write_text(OTHER)
        files["ca"].write_bytes(Authority().pem)
        caplog.clear()
        for _ in range(2):  # what did not change is said once, and a PEM string counts from the second look on
            running._reloader.use_changed_secrets()
        assert post_change(running, "a", secret=OTHER).status == 200
    said = [record.getMessage() for record in caplog.records if record.name == reload.__name__]
    assert [line for line in said if "stay as they were" not in line and "keeps the" not in line] == [
        "receivers::statsig::signing_secrets[0]: is a new secret, valid from now on",
        "exporters::otlp_http/b: the files of its headers have changed",
        "exporters::kafka/f: the files of its password have changed",
        "exporters::otlp_http/e: the files of its headers and certificates have changed",
    ]
    eu, a, c, d = (line for line in said if "stay as they were" in line or "keeps the" in line)
    assert eu.startswith("receivers::statsig/eu::signing_secrets[0]: ")
    assert eu.endswith("; the secrets of statsig/eu stay as they were")
    assert a.startswith("exporters::otlp_http/a::headers::key: ")
    assert a.endswith("; otlp_http/a keeps the headers that it has")
    assert c.startswith("exporters::otlp_http/c::headers: ")
    assert c.endswith("; otlp_http/c keeps the headers that it has")
    assert d.startswith("exporters::otlp_grpc/d::headers: the value of the header 'key' is empty (")
    assert d.endswith("config.yaml:9); otlp_grpc/d keeps the headers that it has")
