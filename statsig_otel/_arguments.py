"""Refuses arguments of a wrong type, where a program passes them and not where they are used later.

What a person writes in a configuration is checked by `config` instead.
"""

from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from types import NoneType


def check_type(
    argument: str, value: object, expected: type | tuple[type, ...], wanted: str = "", *, hint: str = ""
) -> None:
    """Refuse an argument of another type. A boolean is not a number, though Python takes it for one.

    Args:
        argument: The argument's name.
        value: What was passed. Only its type is shown, since it may be a secret.
        expected: The type, or several.
        wanted: What it has to be, for the message; by default a value of the type.
        hint: What to do.

    Raises:
        TypeError: It is of another type.
    """
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(mistyped(argument, value, wanted or _one(expected), hint=hint))


def check_items(argument: str, values: object, expected: type) -> None:
    """Refuse what is not a tuple of values of this type. See `check_type`.

    Raises:
        TypeError: It is not a tuple, or a value in it is of another type.
    """
    if not isinstance(values, tuple):
        raise TypeError(mistyped(argument, values, f"a tuple of {expected.__qualname__}"))
    for index, value in enumerate(values):
        if not isinstance(value, expected):  # without a call, since some are checked for each change
            raise TypeError(mistyped(f"{argument}[{index}]", value, _one(expected)))


def mistyped(argument: str, value: object, wanted: str, *, hint: str = "") -> str:
    """The message about an argument of another type."""
    message = f"{argument} must be {wanted}, not {type_name(value)}"
    return f"{message}: {hint}" if hint else message


def type_name(value: object) -> str:
    """The name of a value's type, for a message; its content may be a secret."""
    return "None" if value is None else type(value).__qualname__


def described(value: object) -> str:
    """A value by its type, for a message."""
    return "None" if value is None else _with_article(type(value).__qualname__)


def why_not_callable(value: object, name: str, parameters: str, *, may_be_async: bool = False) -> str | None:
    """Why an object's method can't be called, as the end of a sentence that begins with the object's type.

    Args:
        value: The object.
        name: The method's name.
        parameters: What it is called with, by position; separated by `, `.
        may_be_async: Whether it may be an `async def`.
    """
    method = getattr(value, name, None)
    if not callable(method):
        return f"has no {name}()"
    for called in (method, getattr(method, "__call__", None)):  # noqa: B004 - of an object in the place of a method
        if isgeneratorfunction(called) or isasyncgenfunction(called):
            return f"has a {name}() with yield, which answers with a generator: use return"
        if iscoroutinefunction(called) and not may_be_async:
            return f"has an async {name}(), and it is called in a thread"
    try:
        signature(method).bind(*filter(None, parameters.split(", ")))
    except TypeError:
        return f"has a {name}() that can't be called as {name}({parameters})"
    except ValueError:
        pass  # it does not say what it takes
    return None


def _one(expected: type | tuple[type, ...]) -> str:
    types = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join("None" if one is NoneType else _with_article(one.__qualname__) for one in types)


def _with_article(name: str) -> str:
    return name if name == "bytes" else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
