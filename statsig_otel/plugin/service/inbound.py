"""The receivers of a service with their servers: starts, reloads and stops them, and says what they have seen."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from statsig_otel._arguments import check_type
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, Problem, hint_for
from statsig_otel.exporters.consumer import Consumer
from statsig_otel.plugin.receiver.asgi import StatsigReceiver
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.server.listening import InheritedSocket
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from statsig_otel.plugin.service.endpoints import (
    Endpoint,
    check_shared_endpoints,
    endpoints_of,
    expired_certificates,
    share_memory,
)
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, with_resource
from statsig_otel.plugin.watch.facts import ReceiverFacts, receiver_facts
from statsig_otel.plugin.watch.health import Health

_logger: Final = logging.getLogger(__name__)
_R = TypeVar("_R")


class Inbound:
    """The receivers of one configuration, and a server for each of their addresses. The constructor opens nothing.

    Args:
        configuration: The configuration.
        consumer: Takes the receivers' batches.
        resource: Attributes of the records' resource. A receiver's own attributes override them.
        listen: Whether the receivers get servers at their endpoints.
        url: What comes before the receivers' paths in the URLs that Statsig uses.
        inherited: Listening sockets of a supervisor. The name of each is the id of a receiver.

    Attributes:
        receivers: The receivers for ASGI, by id.
        wsgi_receivers: The receivers for WSGI, by id.
        intakes: What answers for each receiver, by id.
        server_thread: The thread of the receivers' servers.

    Raises:
        ConfigError: Receivers that share an endpoint don't agree.
    """

    def __init__(
        self,
        configuration: Configuration,
        consumer: Consumer,
        *,
        resource: Mapping[str, AttributeValue],
        listen: bool,
        url: str,
        inherited: Sequence[InheritedSocket],
    ) -> None:
        settings = receiver_settings(configuration)
        check_shared_endpoints(settings, listens=listen)
        self._settings = settings
        self._resource = dict(resource)
        self._listens = listen
        self._url = url.rstrip("/")
        self._inherited = inherited
        for name, one in settings.items():
            if self._url.endswith(one.path):
                message = (
                    "url ends with the path of %s, whose URL is then %s%s: leave the path out, unless that is meant"
                )
                _logger.warning(message, name, self._url, one.path)
        self._endpoints: list[Endpoint] = []
        self.server_thread: Final = ServerThread([])
        self.intakes: Final = {name: one.intake(name) for name, one in self.complete_settings.items()}
        share_memory(self.intakes, settings, listens=listen)
        self.receivers: Final = {name: StatsigReceiver(intake, consumer) for name, intake in self.intakes.items()}
        self.wsgi_receivers: Final = {
            name: StatsigWsgiReceiver(intake, consumer) for name, intake in self.intakes.items()
        }

    @property
    def complete_settings(self) -> dict[str, StatsigReceiverSettings]:
        """The receivers' settings, by id, with all of their resource."""
        return self._completed(self._settings)

    def _completed(self, settings: Mapping[str, StatsigReceiverSettings]) -> dict[str, StatsigReceiverSettings]:
        return {name: with_resource(one, self._resource) for name, one in settings.items()}

    def known(self, receiver: str) -> str:
        """The id of a receiver.

        Raises:
            ConfigError: There is no such receiver.
            TypeError: The id is not a string.
        """
        check_type("receiver", receiver, str)
        if receiver not in self._settings:
            problem = Problem(("receivers", receiver), "there is no such receiver", hint_for(receiver, self._settings))
            raise ConfigError([problem])
        return receiver

    def by_path(self, receivers: Mapping[str, _R]) -> dict[str, _R]:
        """Receivers by their paths instead of their ids."""
        return {self._settings[name].path: one for name, one in receivers.items()}

    def make_servers(self, health: Health) -> None:
        """Make the servers, which answer health checks too. Call it again after a failed start.

        Raises:
            ValueError: The inherited sockets do not fit the receivers.
        """
        if self._listens:
            self._endpoints = endpoints_of(self._settings, self.receivers, self._inherited, health=health)
        self.server_thread.servers = [endpoint.server for endpoint in self._endpoints]

    @property
    def has_servers(self) -> bool:
        """Whether there are servers."""
        return bool(self._endpoints)

    @property
    def has_failed(self) -> bool:
        """Whether no more webhooks are accepted, since a server has ended, or what is behind it."""
        ended = self.server_thread.ended
        return ended.done() and (self.has_servers or ended.exception() is not None)

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each receiver: below the given one, or else on this machine, and known after `bind`.

        Raises:
            RuntimeError: They are not known: without a given one, before `bind`, or of a service that does not listen.
        """
        if self._url:
            return {name: f"{self._url}{one.path}" for name, one in self._settings.items()}
        if not self._listens:
            raise RuntimeError("this service does not listen, and knows the URLs of its receivers only by its `url`")
        return {name: url for endpoint in self._endpoints for name, url in endpoint.urls.items()}

    def refusal_reasons(self) -> dict[str, str]:
        """Why clients can't deliver webhooks now: a sentence for each reason."""
        return expired_certificates(self._endpoints)

    def facts(self) -> list[ReceiverFacts]:
        """The state of each receiver."""
        bound = [endpoint for endpoint in self._endpoints if endpoint.port]
        urls = self.urls if self._url else {name: url for one in bound for name, url in one.urls.items()}
        ports = {name: endpoint.port for endpoint in self._endpoints for name in endpoint.receivers}
        return [
            receiver_facts(name, self.intakes[name], path=one.path, url=urls.get(name, ""), port=ports.get(name, 0))
            for name, one in self._settings.items()
        ]

    def use_patience(self, patience: Callable[[str], float]) -> None:
        """Let receivers wait for the consumer for as many seconds as the function gives for their ids."""
        for name, receiver in self.receivers.items():
            receiver.patience = self.wsgi_receivers[name].patience = patience(name)

    def bind(self) -> None:
        """Listen. The servers answer after `server_thread.start`.

        Raises:
            ListenError: An address can't be listened on.
        """
        for endpoint in self._endpoints:
            endpoint.server.bind()

    def unbind(self) -> None:
        """Listen no more, if the servers could not be started."""
        for endpoint in self._endpoints:
            endpoint.server.stop()

    def check(self, configuration: Configuration) -> None:
        """Check whether the receivers of another configuration fit together.

        Raises:
            ConfigError: Receivers that share an endpoint don't agree.
        """
        check_shared_endpoints(receiver_settings(configuration), listens=self._listens)

    def prepare(self, configuration: Configuration) -> Callable[[], None]:
        """Prepare other settings of the same receivers.

        Returns:
            A function that applies them, and can't fail.
        """
        before, after = self._settings, receiver_settings(configuration)
        # A verifier that is as before stays: `queue` says which of its secrets was used last.
        verifiers = {
            name: one.verifier()
            for name, one in after.items()
            if one.signing_secrets != before[name].signing_secrets
            or one.timestamp_tolerance != before[name].timestamp_tolerance
        }
        mappers = {name: settings.mapper() for name, settings in self._completed(after).items()}

        def apply() -> None:
            self._settings = after
            for name, intake in self.intakes.items():
                intake.mapper = mappers[name]
                if name in verifiers:
                    intake.verifier = verifiers[name]

        return apply

    def change_secrets(self, configuration: Configuration) -> None:
        """Use the signing secrets of a configuration that differs only in secrets."""
        before, self._settings = self._settings, receiver_settings(configuration)
        for name, settings in self._settings.items():
            if settings.signing_secrets != before[name].signing_secrets:
                self.intakes[name].verifier = settings.verifier()

    def tls_servers(self) -> list[tuple[list[str], HttpServer]]:
        """The servers, each with the places in the configuration that its TLS settings have."""
        return [([f"receivers::{name}" for name in one.receivers], one.server) for one in self._endpoints]

    def close(self, grace: float) -> None:
        """Refuse new requests, and those whose body does not arrive within `grace` seconds. Returns at once."""
        for receiver in self.receivers.values():
            receiver.close(grace)
        for wsgi_receiver in self.wsgi_receivers.values():
            wsgi_receiver.close()

    def join(self, left: Callable[[], float]) -> None:
        """Wait until all requests are answered. `left` gives the seconds that are left of `_times.REQUEST_DRAIN`."""
        self.server_thread.shutdown(left())
        for intake in self.intakes.values():  # those of an application that the receivers are mounted in
            intake.wait_until_idle(left())


def read_tls_again(
    servers: Iterable[tuple[Sequence[str], HttpServer]],
) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """Functions that make servers use their changed TLS files, by place; and why others can't use theirs.

    Args:
        servers: The servers, each with its places in the configuration.
    """
    renewed: dict[str, Callable[[], None]] = {}
    failures: list[str] = []
    for places, server in servers:
        try:
            if (use := server.read_tls_again()) is not None:
                renewed.update(dict.fromkeys(places, use))
        except (OSError, ValueError) as error:
            failures += [f"{place}: its certificates were not renewed: {error}" for place in places]
    return renewed, failures
