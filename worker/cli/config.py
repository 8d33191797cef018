"""`postrio config`: parameters and their values, as postconf(1) shows them."""

import os

import click

from worker.cli.exits import CommandError, complain
from worker.cli.options import config_choice, configured
from worker.config.listing import Form, UnknownParameterError, Which, show
from worker.config.parameter import Kind, Parameter
from worker.config.parameters import find
from worker.config.values import range_in_words

EPILOG = """\b
Examples:
  postrio config -n                      what main.cf and -o change
  postrio config -d smtp_helo_timeout    the default of one parameter
  postrio config -hx queue_directory     its value alone, $names resolved
  postrio config --explain relayhost     what it is for
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-d", "defaults", is_flag=True, help="Show defaults instead of actual values.")
@click.option("-n", "changed", is_flag=True, help="Show only what main.cf or -o sets.")
@click.option("-h", "values_only", is_flag=True, help="Show values without their names.")
@click.option("-H", "names_only", is_flag=True, help="Show names without their values.")
@click.option("-x", "expanded", is_flag=True, help="Resolve $name in values.")
@click.option("--explain", is_flag=True, help="Say what each NAME is for.")
@configured
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    *,
    defaults: bool,
    changed: bool,
    values_only: bool,
    names_only: bool,
    expanded: bool,
    explain: bool,
) -> int:
    """Show parameters and their values, in main.cf's syntax. Without NAMEs: all of them."""
    if defaults and changed:
        raise click.UsageError("-d and -n exclude each other")
    if values_only and names_only:
        raise click.UsageError("-h and -H exclude each other")
    if explain and not names:
        raise click.UsageError("--explain needs a NAME")
    config = config_choice(context).load_without_tables()
    for warning in config.warnings:
        complain("postrio", f"warning: {warning}")
    which = Which.DEFAULTS if defaults else Which.CHANGED if changed else Which.ALL
    form = Form.VALUES if values_only else Form.NAMES if names_only else Form.BOTH
    try:
        for line in show(config, names, which=which, form=form, expanded=expanded):
            click.echo(line)
    except UnknownParameterError as exc:
        raise CommandError(str(exc), os.EX_USAGE) from exc
    if explain:
        for row in filter(None, map(find, names)):
            click.echo(explanation(row))
    return os.EX_OK


def explanation(row: Parameter) -> str:
    """What there is to say about a parameter, in a few lines."""
    lines = [f"{row.name}: {row.summary}"]
    values = row.kind.value
    if row.choices:
        values = f"{values}: {', '.join(choice or 'nothing' for choice in row.choices)}"
    elif row.kind in {Kind.INTEGER, Kind.TIME}:
        values = range_in_words(row)
    lines.append(f"  Takes {values}; default: {row.default or 'empty'}.")
    if row.mirror is not None:
        lines.append(f"  LMTP reads {row.mirror.name}.")
    if row.deprecated:
        lines.append(f"  Deprecated: {row.deprecated}.")
    if row.no_effect:
        lines.append(f"  No effect: {row.no_effect}.")
    lines.append(f"  Known since {row.source}.")
    return "\n".join(lines)
