"""Keeps a secret string out of logs and messages. Loads no other package, since the pure part takes secrets too."""

from typing import TYPE_CHECKING, Any, Final

from statsig_otel._arguments import check_type

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

REDACTED: Final = "[REDACTED]"
"""What is shown in the place of a secret."""


class Opaque:
    """A secret string: prints as `[REDACTED]` everywhere, like the Collector's `configopaque.String`.

    Raises:
        TypeError: It is not a string.

    Example:
        >>> from statsig_otel.config import Opaque
        >>> secret = Opaque("webhook-123")
        >>> print(secret, secret.reveal())
        [REDACTED] webhook-123
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        check_type("text", text, str)
        self._text = text

    def reveal(self) -> str:
        """The string itself."""
        return self._text

    def __repr__(self) -> str:
        return REDACTED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Any string (or an `Opaque`) in; `[REDACTED]` out, in JSON too."""
        from pydantic_core import core_schema  # noqa: PLC0415 - see above

        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            # No union of the two: pydantic would report what is wrong with each.
            python_schema=core_schema.no_info_wrap_validator_function(
                lambda value, text: value if isinstance(value, cls) else text(value), from_text
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(repr),
        )


def reveal(secret: str | Opaque) -> str:
    """The string of a secret."""
    return secret.reveal() if isinstance(secret, Opaque) else secret
