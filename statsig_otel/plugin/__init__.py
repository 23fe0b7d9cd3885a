"""From a webhook to a record: verification, mapping, the receiver, and the service around them.

Names are loaded when they are first used: importing the pure part (`verify`, `parse`, `ChangeEvent`, `Mapper`,
`LogRecordEncoder`, `Intake`) loads neither falcon nor grpc nor an SDK. `StatsigReceiver` and `create_app` are for ASGI,
`StatsigWsgiReceiver` and `create_wsgi_app` for WSGI.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.plugin.change_event import ChangeEvent as ChangeEvent
    from statsig_otel.plugin.change_event import InvalidItemError as InvalidItemError
    from statsig_otel.plugin.intake import Answer as Answer
    from statsig_otel.plugin.intake import AnsweredError as AnsweredError
    from statsig_otel.plugin.intake import Intake as Intake
    from statsig_otel.plugin.intake import Limits as Limits
    from statsig_otel.plugin.log_record import LogRecordEncoder as LogRecordEncoder
    from statsig_otel.plugin.log_record import uid as uid
    from statsig_otel.plugin.mapper import Mapped as Mapped
    from statsig_otel.plugin.mapper import Mapper as Mapper
    from statsig_otel.plugin.receiver import DEFAULT_PATH as DEFAULT_PATH
    from statsig_otel.plugin.receiver import StatsigReceiver as StatsigReceiver
    from statsig_otel.plugin.receiver import create_app as create_app
    from statsig_otel.plugin.server import HttpServer as HttpServer
    from statsig_otel.plugin.service import Service as Service
    from statsig_otel.plugin.webhook import SIGNATURE_HEADER as SIGNATURE_HEADER
    from statsig_otel.plugin.webhook import TIMESTAMP_HEADER as TIMESTAMP_HEADER
    from statsig_otel.plugin.webhook import MalformedBodyError as MalformedBodyError
    from statsig_otel.plugin.webhook import Payload as Payload
    from statsig_otel.plugin.webhook import UnauthorizedError as UnauthorizedError
    from statsig_otel.plugin.webhook import UrlVerification as UrlVerification
    from statsig_otel.plugin.webhook import Verifier as Verifier
    from statsig_otel.plugin.webhook import WebhookError as WebhookError
    from statsig_otel.plugin.webhook import parse as parse
    from statsig_otel.plugin.webhook import parse_url_verification as parse_url_verification
    from statsig_otel.plugin.webhook import sign as sign
    from statsig_otel.plugin.webhook import verify as verify
    from statsig_otel.plugin.wsgi_receiver import StatsigWsgiReceiver as StatsigWsgiReceiver
    from statsig_otel.plugin.wsgi_receiver import create_wsgi_app as create_wsgi_app

__getattr__, __dir__ = exports(
    __name__,
    {
        "DEFAULT_PATH": "receiver",
        "SIGNATURE_HEADER": "webhook",
        "TIMESTAMP_HEADER": "webhook",
        "Answer": "intake",
        "AnsweredError": "intake",
        "ChangeEvent": "change_event",
        "HttpServer": "server",
        "Intake": "intake",
        "InvalidItemError": "change_event",
        "Limits": "intake",
        "LogRecordEncoder": "log_record",
        "MalformedBodyError": "webhook",
        "Mapped": "mapper",
        "Mapper": "mapper",
        "Payload": "webhook",
        "Service": "service",
        "StatsigReceiver": "receiver",
        "StatsigWsgiReceiver": "wsgi_receiver",
        "UnauthorizedError": "webhook",
        "UrlVerification": "webhook",
        "Verifier": "webhook",
        "WebhookError": "webhook",
        "create_app": "receiver",
        "create_wsgi_app": "wsgi_receiver",
        "parse": "webhook",
        "parse_url_verification": "webhook",
        "sign": "webhook",
        "uid": "log_record",
        "verify": "webhook",
    },
)
