"""The options that every command has: -c main.cf, -o name=value, --debug; and the configuration.

They stand before or after the subcommand's name. `-o` adds up; of two `-c` the later one holds.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import click

from worker.cli.exits import DEBUG_VARIABLE
from worker.config.config import Config

_Function = TypeVar("_Function", bound=Callable[..., object])


@dataclass(slots=True)
class ConfigChoice:
    """Which configuration the command line asks for."""

    path: Path | None = None
    overrides: list[str] = field(default_factory=list)

    def load(self) -> Config:
        """Read it. Raises ConfigError."""
        return Config.load(self.path, self.overrides)

    def load_without_tables(self) -> Config:
        """Read it for a command that any user may give: tables may hold what he must not read.

        Raises ConfigError.
        """
        return Config.load(self.path, self.overrides, tables=False)

    def arguments(self) -> list[str]:
        """The same choice as arguments for a process we start; the path is made absolute."""
        words = [] if self.path is None else ["-c", str(self.path.absolute())]
        for text in self.overrides:
            words += ["-o", text]
        return words


def config_choice(context: click.Context) -> ConfigChoice:
    """The choice of this invocation, shared by the group and its subcommand."""
    return context.ensure_object(ConfigChoice)


def configured(function: _Function) -> _Function:
    """Give a command -c, -o and --debug; it gets the choice with `config_choice(context)`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _take_path(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    choice = config_choice(context)
    if value is not None:
        choice.path = value


def _take_overrides(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> None:
    config_choice(context).overrides.extend(values)


def _take_debug(_: click.Context, __: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's
    if value:
        os.environ[DEBUG_VARIABLE] = "1"  # processes that we start follow it


_OPTIONS = (
    click.option(
        "-c",
        "--config",
        metavar="MAIN.CF",
        type=click.Path(path_type=Path, readable=False),  # Config.load() says why it is not
        expose_value=False,
        is_eager=True,
        callback=_take_path,
        help="Read this main.cf, or the one in this directory.",
    ),
    click.option(
        "-o",
        "--option",
        metavar="NAME=VALUE",
        multiple=True,
        expose_value=False,
        is_eager=True,
        callback=_take_overrides,
        help="Set a parameter; wins over main.cf. May be repeated.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_take_debug,
        help="Show tracebacks of internal errors.",
    ),
)
