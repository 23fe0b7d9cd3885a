"""Which commands and options of `statsig-otel` the parser knows, and which of them a test has given."""

from collections.abc import Iterator, Sequence
from typing import cast

import click

from statsig_otel.plugin.cli.main import main


def every_command() -> set[str]:
    """All commands, such as `queue skip`, and each of them with each of its options, such as `queue skip --count`."""
    found = set[str]()
    for words, command in _commands(main):
        found |= {" ".join(words), *(" ".join((*words, max(one.opts, key=len))) for one in _options(command))}
    return found


def commands_in(args: Sequence[str]) -> set[str]:
    """The command of a command line, alone and with each of its options."""
    words, command = list[str](), cast("click.Command", main)
    for arg in args:
        if not isinstance(command, click.Group) or (inner := _inner(command, arg)) is None:
            break
        words, command = [*words, arg], inner
    given = {arg.partition("=")[0] for arg in args}
    options = (max(one.opts, key=len) for one in _options(command) if given.intersection(one.opts))
    return {" ".join(words), *(" ".join((*words, option)) for option in options)}


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    if words and command.invoke_without_command:
        yield words, command
    for name in command.list_commands(click.Context(command)):
        inner = _inner(command, name)
        assert inner is not None
        yield from _commands(inner, (*words, name))


def _inner(group: click.Group, name: str) -> click.Command | None:
    context = click.Context(group)
    return group.get_command(context, name) if name in group.list_commands(context) else None


def _options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option)]
