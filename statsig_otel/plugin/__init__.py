"""From a webhook to a record: verification, mapping, the receiver, and the service around them.

Names are loaded when they are first used: importing the pure part (`verify`, `parse`, `ChangeEvent`, `Mapper`,
`LogRecordEncoder`, `Intake`) loads neither falcon nor grpc nor an SDK. `StatsigReceiver` and `create_app` are for ASGI,
`StatsigWsgiReceiver` and `create_wsgi_app` for WSGI.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.plugin.receiver.asgi import StatsigReceiver as StatsigReceiver
    from statsig_otel.plugin.receiver.asgi import create_app as create_app
    from statsig_otel.plugin.receiver.intake import Answer as Answer
    from statsig_otel.plugin.receiver.intake import AnsweredError as AnsweredError
    from statsig_otel.plugin.receiver.intake import Intake as Intake
    from statsig_otel.plugin.receiver.intake import Limits as Limits
    from statsig_otel.plugin.receiver.intake import Request as Request
    from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver as StatsigWsgiReceiver
    from statsig_otel.plugin.receiver.wsgi import create_wsgi_app as create_wsgi_app
    from statsig_otel.plugin.record.change_event import ChangeEvent as ChangeEvent
    from statsig_otel.plugin.record.change_event import InvalidItemError as InvalidItemError
    from statsig_otel.plugin.record.filter import ChangeFilter as ChangeFilter
    from statsig_otel.plugin.record.mapper import Mapped as Mapped
    from statsig_otel.plugin.record.mapper import Mapper as Mapper
    from statsig_otel.plugin.record.record import LogRecordEncoder as LogRecordEncoder
    from statsig_otel.plugin.record.record import RecordHook as RecordHook
    from statsig_otel.plugin.record.record import uid as uid
    from statsig_otel.plugin.server.server import HttpServer as HttpServer
    from statsig_otel.plugin.server.tls import ServerTls as ServerTls
    from statsig_otel.plugin.service.backend import RestartNeededError as RestartNeededError
    from statsig_otel.plugin.service.builder import Destination as Destination
    from statsig_otel.plugin.service.service import Service as Service
    from statsig_otel.plugin.settings.delivery import BatchSettings as BatchSettings
    from statsig_otel.plugin.settings.delivery import RetryOnFailureSettings as RetryOnFailureSettings
    from statsig_otel.plugin.settings.delivery import SendingQueueSettings as SendingQueueSettings
    from statsig_otel.plugin.settings.filter import ChangeMatchSettings as ChangeMatchSettings
    from statsig_otel.plugin.settings.filter import FilterSettings as FilterSettings
    from statsig_otel.plugin.settings.mapping import LookupSettings as LookupSettings
    from statsig_otel.plugin.settings.mapping import MappingSettings as MappingSettings
    from statsig_otel.plugin.settings.receiver import DeduplicationSettings as DeduplicationSettings
    from statsig_otel.plugin.settings.receiver import ServerTlsSettings as ServerTlsSettings
    from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings as StatsigReceiverSettings
    from statsig_otel.plugin.settings.services import ImpactedServicesSettings as ImpactedServicesSettings
    from statsig_otel.plugin.settings.services import ServiceRuleSettings as ServiceRuleSettings
    from statsig_otel.plugin.webhook import DEFAULT_PATH as DEFAULT_PATH
    from statsig_otel.plugin.webhook.errors import MalformedBodyError as MalformedBodyError
    from statsig_otel.plugin.webhook.errors import UnauthorizedError as UnauthorizedError
    from statsig_otel.plugin.webhook.errors import WebhookError as WebhookError
    from statsig_otel.plugin.webhook.lenient_json import Item as Item
    from statsig_otel.plugin.webhook.payload import Payload as Payload
    from statsig_otel.plugin.webhook.payload import parse as parse
    from statsig_otel.plugin.webhook.payload import parse_url_verification as parse_url_verification
    from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER as SIGNATURE_HEADER
    from statsig_otel.plugin.webhook.signature import TIMESTAMP_HEADER as TIMESTAMP_HEADER
    from statsig_otel.plugin.webhook.signature import Verification as Verification
    from statsig_otel.plugin.webhook.signature import Verifier as Verifier
    from statsig_otel.plugin.webhook.signature import sign as sign
    from statsig_otel.plugin.webhook.signature import verify as verify
else:  # a checker would take whatever name for one that there is
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Answer": "receiver.intake",
            "AnsweredError": "receiver.intake",
            "BatchSettings": "settings.delivery",
            "ChangeEvent": "record.change_event",
            "ChangeFilter": "record.filter",
            "ChangeMatchSettings": "settings.filter",
            "DEFAULT_PATH": "webhook",
            "DeduplicationSettings": "settings.receiver",
            "Destination": "service.builder",
            "FilterSettings": "settings.filter",
            "HttpServer": "server.server",
            "ImpactedServicesSettings": "settings.services",
            "Intake": "receiver.intake",
            "InvalidItemError": "record.change_event",
            "Item": "webhook.lenient_json",
            "Limits": "receiver.intake",
            "LogRecordEncoder": "record.record",
            "LookupSettings": "settings.mapping",
            "MalformedBodyError": "webhook.errors",
            "Mapped": "record.mapper",
            "Mapper": "record.mapper",
            "MappingSettings": "settings.mapping",
            "Payload": "webhook.payload",
            "RecordHook": "record.record",
            "Request": "receiver.intake",
            "RestartNeededError": "service.backend",
            "RetryOnFailureSettings": "settings.delivery",
            "SIGNATURE_HEADER": "webhook.signature",
            "SendingQueueSettings": "settings.delivery",
            "ServerTls": "server.tls",
            "ServerTlsSettings": "settings.receiver",
            "Service": "service.service",
            "ServiceRuleSettings": "settings.services",
            "StatsigReceiver": "receiver.asgi",
            "StatsigReceiverSettings": "settings.receiver",
            "StatsigWsgiReceiver": "receiver.wsgi",
            "TIMESTAMP_HEADER": "webhook.signature",
            "UnauthorizedError": "webhook.errors",
            "Verification": "webhook.signature",
            "Verifier": "webhook.signature",
            "WebhookError": "webhook.errors",
            "create_app": "receiver.asgi",
            "create_wsgi_app": "receiver.wsgi",
            "parse": "webhook.payload",
            "parse_url_verification": "webhook.payload",
            "sign": "webhook.signature",
            "uid": "record.record",
            "verify": "webhook.signature",
        },
    )
