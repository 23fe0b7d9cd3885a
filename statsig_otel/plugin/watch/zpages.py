"""The server of the `zpages` extension, which shows the live page."""

import logging
from typing import TYPE_CHECKING, Final

from statsig_otel._instruments import collecting
from statsig_otel._times import PAGE_DRAIN
from statsig_otel.plugin.server.listening import host_port
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from statsig_otel.plugin.settings.zpages import ZpagesSettings

if TYPE_CHECKING:
    from statsig_otel.plugin.watch.page_content import ShownService

_logger: Final = logging.getLogger(__name__)

_MOST_CONNECTIONS: Final = 64


class Zpages:
    """The server of a `zpages` extension. The constructor opens nothing.

    Attributes:
        server: The server itself.
    """

    def __init__(self, settings: ZpagesSettings, service: "ShownService") -> None:
        from statsig_otel.plugin.watch.page_content import PageContent  # noqa: PLC0415 - few services have a page
        from statsig_otel.plugin.watch.routes import create_app  # noqa: PLC0415 - likewise

        host, port = settings.address
        self._page = PageContent(service)
        app = create_app(self._page, settings)
        self.server: Final = HttpServer(
            app, host=host, port=port, max_connections=_MOST_CONNECTIONS, tls=settings.tls, takes_webhooks=False
        )
        self._scheme = "http" if settings.tls is None else "https"
        self._thread: ServerThread | None = None

    @property
    def url(self) -> str:
        """Where the page is. Known after `start`."""
        return f"{self._scheme}://{host_port(*self.server.address)}/"

    def start(self) -> None:
        """Listen and answer.

        Raises:
            ListenError: The address can't be listened on.
            OSError: A TLS file can't be read.
            ValueError: The TLS files do not fit.
        """
        self.server.bind()
        collecting.has_begun = True  # the page is a reader: it names the events that are ignored
        self._thread = ServerThread([self.server], name="statsig-otel page", effect="the live page is gone")
        self._thread.start()
        self._page.history.start()
        _logger.info("Live page: %s", self.url)

    def stop(self) -> None:
        """Accept no more connections, and let what is being answered end soon. Returns at once."""
        self._page.close()
        self.server.stop(PAGE_DRAIN)

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the end after `stop`. Works without `start`, and twice."""
        if self._thread is not None:
            self._thread.join(timeout)
