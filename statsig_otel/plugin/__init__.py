"""Takes webhooks and turns them into records; the service and the command line around that.

The public names, each loaded when it is first used:

- Everyday: `Service` with `Destination` and `RestartNeededError`; the settings of a receiver with those of its TLS and
  filter, of a queue with its batches, and of retries.
- Mounting: `StatsigReceiver` and `create_app` for ASGI, `StatsigWsgiReceiver` and `create_wsgi_app` for WSGI; `Intake`
  with `Request`, `Answer`, `AnsweredError` and `Limits` for any other framework.
- Extending: `RecordHook` with `RecordFields`, which changes records; `verify`, `sign`, `parse` and `Mapper` with what
  they take and return, for webhooks that something else receives. These load neither falcon nor grpc nor an SDK.

The modules below are private, though `help` lists them: import from this package.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.plugin.receiver.answer import Answer as Answer
    from statsig_otel.plugin.receiver.answer import AnsweredError as AnsweredError
    from statsig_otel.plugin.receiver.asgi import StatsigReceiver as StatsigReceiver
    from statsig_otel.plugin.receiver.asgi import create_app as create_app
    from statsig_otel.plugin.receiver.bodies import Limits as Limits
    from statsig_otel.plugin.receiver.intake import Intake as Intake
    from statsig_otel.plugin.receiver.intake import Request as Request
    from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver as StatsigWsgiReceiver
    from statsig_otel.plugin.receiver.wsgi import create_wsgi_app as create_wsgi_app
    from statsig_otel.plugin.record.change_event import ChangeEvent as ChangeEvent
    from statsig_otel.plugin.record.mapper import Mapped as Mapped
    from statsig_otel.plugin.record.mapper import Mapper as Mapper
    from statsig_otel.plugin.record.record import LogRecordEncoder as LogRecordEncoder
    from statsig_otel.plugin.record.record import RecordFields as RecordFields
    from statsig_otel.plugin.record.record import RecordHook as RecordHook
    from statsig_otel.plugin.server.tls import ServerTlsSettings as ServerTlsSettings
    from statsig_otel.plugin.service.builder import Destination as Destination
    from statsig_otel.plugin.service.restart import RestartNeededError as RestartNeededError
    from statsig_otel.plugin.service.service import Service as Service
    from statsig_otel.plugin.settings.exporters import BatchSettings as BatchSettings
    from statsig_otel.plugin.settings.exporters import RetryOnFailureSettings as RetryOnFailureSettings
    from statsig_otel.plugin.settings.exporters import SendingQueueSettings as SendingQueueSettings
    from statsig_otel.plugin.settings.filter import ChangeMatchSettings as ChangeMatchSettings
    from statsig_otel.plugin.settings.filter import FilterSettings as FilterSettings
    from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings as StatsigReceiverSettings
    from statsig_otel.plugin.webhook import DEFAULT_PATH as DEFAULT_PATH
    from statsig_otel.plugin.webhook.body import ParsedBody as ParsedBody
    from statsig_otel.plugin.webhook.body import parse as parse
    from statsig_otel.plugin.webhook.body import parse_url_verification as parse_url_verification
    from statsig_otel.plugin.webhook.errors import MalformedBodyError as MalformedBodyError
    from statsig_otel.plugin.webhook.errors import UnauthorizedError as UnauthorizedError
    from statsig_otel.plugin.webhook.signature import Verifier as Verifier
    from statsig_otel.plugin.webhook.signature import sign as sign
    from statsig_otel.plugin.webhook.signature import verify as verify
else:  # type checkers would accept any name of a module with __getattr__
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "receiver.asgi": "StatsigReceiver create_app",
            "receiver.bodies": "Limits",
            "receiver.intake": "Answer AnsweredError Intake Request",
            "receiver.wsgi": "StatsigWsgiReceiver create_wsgi_app",
            "record.change_event": "ChangeEvent",
            "record.mapper": "Mapped Mapper",
            "record.record": "LogRecordEncoder RecordFields RecordHook",
            "server.tls": "ServerTlsSettings",
            "service.builder": "Destination",
            "service.restart": "RestartNeededError",
            "service.service": "Service",
            "settings.exporters": "BatchSettings RetryOnFailureSettings SendingQueueSettings",
            "settings.filter": "ChangeMatchSettings FilterSettings",
            "settings.receiver": "StatsigReceiverSettings",
            "webhook": "DEFAULT_PATH",
            "webhook.errors": "MalformedBodyError UnauthorizedError",
            "webhook.body": "ParsedBody parse parse_url_verification",
            "webhook.signature": "Verifier sign verify",
        },
    )
