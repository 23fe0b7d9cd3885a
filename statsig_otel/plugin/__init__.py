"""From a webhook to a record: verification, mapping, the receiver, and the service around them.

Names are loaded when they are first used: importing the pure part (`verify`, `parse`, `ChangeEvent`, `Mapper`,
`LogRecordEncoder`, `Intake`) loads neither falcon nor grpc nor an SDK. `StatsigReceiver` and `create_app` are for ASGI,
`StatsigWsgiReceiver` and `create_wsgi_app` for WSGI.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.plugin.assembly import Destination as Destination
    from statsig_otel.plugin.change_event import ChangeEvent as ChangeEvent
    from statsig_otel.plugin.change_event import InvalidItemError as InvalidItemError
    from statsig_otel.plugin.delivery import RestartNeededError as RestartNeededError
    from statsig_otel.plugin.delivery_settings import BatchSettings as BatchSettings
    from statsig_otel.plugin.delivery_settings import RetryOnFailureSettings as RetryOnFailureSettings
    from statsig_otel.plugin.delivery_settings import SendingQueueSettings as SendingQueueSettings
    from statsig_otel.plugin.filter import ChangeFilter as ChangeFilter
    from statsig_otel.plugin.filter_settings import ChangeMatchSettings as ChangeMatchSettings
    from statsig_otel.plugin.filter_settings import FilterSettings as FilterSettings
    from statsig_otel.plugin.impacted_services_settings import ImpactedServicesSettings as ImpactedServicesSettings
    from statsig_otel.plugin.impacted_services_settings import ServiceRuleSettings as ServiceRuleSettings
    from statsig_otel.plugin.intake import Answer as Answer
    from statsig_otel.plugin.intake import AnsweredError as AnsweredError
    from statsig_otel.plugin.intake import Intake as Intake
    from statsig_otel.plugin.intake import Limits as Limits
    from statsig_otel.plugin.intake import Request as Request
    from statsig_otel.plugin.lenient_json import Item as Item
    from statsig_otel.plugin.log_record import LogRecordEncoder as LogRecordEncoder
    from statsig_otel.plugin.log_record import Remapping as Remapping
    from statsig_otel.plugin.log_record import uid as uid
    from statsig_otel.plugin.mapper import Mapped as Mapped
    from statsig_otel.plugin.mapper import Mapper as Mapper
    from statsig_otel.plugin.mapping_settings import LookupSettings as LookupSettings
    from statsig_otel.plugin.mapping_settings import MappingSettings as MappingSettings
    from statsig_otel.plugin.receiver import StatsigReceiver as StatsigReceiver
    from statsig_otel.plugin.receiver import create_app as create_app
    from statsig_otel.plugin.server import HttpServer as HttpServer
    from statsig_otel.plugin.server import ServerTls as ServerTls
    from statsig_otel.plugin.service import Service as Service
    from statsig_otel.plugin.settings import DeduplicationSettings as DeduplicationSettings
    from statsig_otel.plugin.settings import ServerTlsSettings as ServerTlsSettings
    from statsig_otel.plugin.settings import StatsigReceiverSettings as StatsigReceiverSettings
    from statsig_otel.plugin.webhook import DEFAULT_PATH as DEFAULT_PATH
    from statsig_otel.plugin.webhook import SIGNATURE_HEADER as SIGNATURE_HEADER
    from statsig_otel.plugin.webhook import TIMESTAMP_HEADER as TIMESTAMP_HEADER
    from statsig_otel.plugin.webhook import MalformedBodyError as MalformedBodyError
    from statsig_otel.plugin.webhook import Payload as Payload
    from statsig_otel.plugin.webhook import UnauthorizedError as UnauthorizedError
    from statsig_otel.plugin.webhook import UrlVerification as UrlVerification
    from statsig_otel.plugin.webhook import Verification as Verification
    from statsig_otel.plugin.webhook import Verifier as Verifier
    from statsig_otel.plugin.webhook import WebhookError as WebhookError
    from statsig_otel.plugin.webhook import parse as parse
    from statsig_otel.plugin.webhook import parse_url_verification as parse_url_verification
    from statsig_otel.plugin.webhook import sign as sign
    from statsig_otel.plugin.webhook import verify as verify
    from statsig_otel.plugin.wsgi_receiver import StatsigWsgiReceiver as StatsigWsgiReceiver
    from statsig_otel.plugin.wsgi_receiver import create_wsgi_app as create_wsgi_app
else:  # a checker would take whatever name for one that there is
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Answer": "intake",
            "AnsweredError": "intake",
            "BatchSettings": "delivery_settings",
            "ChangeEvent": "change_event",
            "ChangeFilter": "filter",
            "ChangeMatchSettings": "filter_settings",
            "DEFAULT_PATH": "webhook",
            "DeduplicationSettings": "settings",
            "Destination": "assembly",
            "FilterSettings": "filter_settings",
            "HttpServer": "server",
            "ImpactedServicesSettings": "impacted_services_settings",
            "Intake": "intake",
            "InvalidItemError": "change_event",
            "Item": "lenient_json",
            "Limits": "intake",
            "LogRecordEncoder": "log_record",
            "LookupSettings": "mapping_settings",
            "MalformedBodyError": "webhook",
            "Mapped": "mapper",
            "Mapper": "mapper",
            "MappingSettings": "mapping_settings",
            "Payload": "webhook",
            "Remapping": "log_record",
            "Request": "intake",
            "RestartNeededError": "delivery",
            "RetryOnFailureSettings": "delivery_settings",
            "SIGNATURE_HEADER": "webhook",
            "SendingQueueSettings": "delivery_settings",
            "ServerTls": "server",
            "ServerTlsSettings": "settings",
            "Service": "service",
            "ServiceRuleSettings": "impacted_services_settings",
            "StatsigReceiver": "receiver",
            "StatsigReceiverSettings": "settings",
            "StatsigWsgiReceiver": "wsgi_receiver",
            "TIMESTAMP_HEADER": "webhook",
            "UnauthorizedError": "webhook",
            "UrlVerification": "webhook",
            "Verification": "webhook",
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
