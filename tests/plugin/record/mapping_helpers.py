"""What tests of filter and mapping share: a mapper as the service makes it of a receiver's keys."""

from pathlib import Path
from typing import Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from statsig_otel.config.errors import ConfigError
from statsig_otel.config.source import parse
from statsig_otel.config.validation import validate
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings

OBSERVED: Final = 1_739_400_185_400_123_456


def mapper_of(keys: str) -> Mapper:
    """The mapper of a receiver with these keys.

    Raises:
        ConfigError: They are wrong.
    """
    document = parse(keys.encode(), file="config.yaml", directory=Path(), environ={})
    values = {"signing_secrets": [], **document.values}
    settings, problems = validate(StatsigReceiverSettings, values, (), document)
    if settings is None:
        raise ConfigError(problems)
    return settings.mapper()


def plain(value: AnyValue) -> object:
    """A value of an attribute as Python has it."""
    kind = value.WhichOneof("value")
    return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))
