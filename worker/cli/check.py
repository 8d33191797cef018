"""`postrio check`: what would be wrong if `postrio run` were started now. Changes nothing."""

import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from protocol.request import Protocol
from worker.cli.exits import CommandError, complain
from worker.cli.options import config_choice, configured
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.config.table import TableError
from worker.delivery.settings import DeliverySettings
from worker.environment import MESSAGES, OTHERS, make_hand_over, make_rules
from worker.errors import ResolveError
from worker.network.connect import WRONG_PORT
from worker.network.endpoints import SMTP_PORT
from worker.network.network import DnsSettings, NetworkSettings, check_nexthop
from worker.pool.cache_process import own_socket
from worker.queue.routing import Router
from worker.queue.schema import DATABASE, check_database
from worker.queue.settings import TRANSPORTS, QueueSettings
from worker.queue.store import StoreError
from worker.sasl.client import SaslClient
from worker.sasl.refusals import refusal_path
from worker.status.events import Event, Warned
from worker.tls.contexts import Contexts, TlsFilesError
from worker.tls.policies import TlsPolicies, TlsPolicyError
from worker.tls.sessions import session_file

RESOLV_CONF: Final = Path("/etc/resolv.conf")
SESSIONS: Final = "TLS sessions will not be shared between processes"
REFUSALS: Final = "refused logins will not be shared between processes"
TRACE: Final = "TLS will not be traced"
POSTFIX_QUEUE: Final = "maildrop"  # a folder that every queue of Postfix has, and no other
DESCRIPTORS_PER_SLOT: Final = 2  # the session, and the content of a large message
EPILOG = """\b
Examples:
  postrio check
  postrio check -c ./main.cf -o queue_directory=/var/tmp/queue

\b
Exit status: 0 nothing is wrong (there may be warnings); 78 something is.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about this machine that an operator should know."""

    text: str
    fatal: bool  # `postrio run` would not start, or not work


@click.command(epilog=EPILOG)
@configured
@click.pass_context
def command(context: click.Context) -> int:
    """Say what is wrong with configuration, queue and directories."""
    config = config_choice(context).load()
    for warning in config.warnings:
        complain("postrio", f"warning: {warning}")
    fatal = 0
    for finding in findings(config):
        fatal += finding.fatal
        complain("postrio", finding.text if finding.fatal else f"warning: {finding.text}")
    if fatal:
        problems = "problem" if fatal == 1 else "problems"
        raise CommandError(f"{fatal} {problems} found", os.EX_CONFIG)
    click.echo("nothing is wrong")
    return os.EX_OK


def findings(config: Config) -> Iterator[Finding]:
    """Everything found, part by part."""
    yield from _parts(config)
    yield from _queue(Path(config.text("queue_directory")), config)
    yield from _log(config)
    yield from _shared(config)
    yield from _unused(config)
    yield from _entries(config)
    yield from _transports(config)
    yield from _usual_nexthop(config)
    yield from _lmtp_ports(config)
    yield from _resolver(config)
    yield from _descriptors(config)


def _parts(config: Config) -> Iterator[Finding]:
    """What only shows when the parts read their parameters: names that do not resolve, ports."""
    odd: list[Event] = []
    parts: list[Callable[[], object]] = [
        partial(DnsSettings.from_config, config),
        partial(QueueSettings.from_config, config),
        partial(Router.from_config, config),
        partial(own_socket, config),
        partial(make_hand_over, config, odd.append),
    ]
    for protocol in Protocol:
        parts.append(partial(DeliverySettings.from_config, config, protocol))
        parts.append(partial(NetworkSettings.from_config, config, protocol))
        parts.append(partial(make_rules, config, protocol, odd.append, files=False))
    said = set()
    for part in parts:
        try:
            part()
        except ConfigError as exc:
            for problem in map(str, exc.problems):
                if problem not in said:  # both protocols trip over the same line
                    said.add(problem)
                    yield Finding(problem, fatal=True)
    for text in dict.fromkeys(event.text for event in odd if isinstance(event, Warned)):
        yield Finding(text, fatal=False)


def _queue(directory: Path, config: Config) -> Iterator[Finding]:
    where = f"queue_directory {directory}"
    try:
        status = directory.stat()
    except FileNotFoundError:
        parent = next(path for path in directory.absolute().parents if path.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding(f"{where} does not exist; 'postrio run' will make it", fatal=False)
        else:
            yield Finding(f"{where} does not exist, and {parent} is not writable", fatal=True)
        return
    except OSError as exc:
        yield Finding(f"{where}: {exc.strerror}", fatal=True)
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding(f"{where} is not a directory", fatal=True)
        return
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(f"{where} is not readable and writable for this user", fatal=True)
        return
    if (directory / POSTFIX_QUEUE).is_dir():
        yield Finding(
            f"{where} is a queue of Postfix; both would use public/ and private/", fatal=True
        )
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(f"{where} is writable for other users", fatal=False)
    try:
        check_database(directory / DATABASE)
    except StoreError as exc:
        yield Finding(str(exc), fatal=True)
    free = shutil.disk_usage(directory).free
    if free < config.integer("queue_minfree"):
        yield Finding(f"{where}: less than queue_minfree is free ({free} octets)", fatal=True)
    elif free < 2 * config.integer("message_size_limit"):
        yield Finding(f"{where}: there is room for hardly one large message", fatal=False)


def _log(config: Config) -> Iterator[Finding]:
    name = config.text("maillog_file")
    if not name or name.startswith("/dev/"):
        return
    path = Path(name)
    there = os.access(path, os.F_OK)
    probe, what = (path, "writable") if there else (path.parent, "a writable directory")
    if not os.access(probe, os.W_OK) or path.is_dir():
        yield Finding(f"maillog_file: {probe} is not {what}", fatal=True)


def _shared(config: Config) -> Iterator[Finding]:
    """Files that processes share: mail goes out without them, but nobody would know why."""
    for protocol in Protocol:
        sessions = config.mirror("smtp_tls_session_cache_database", protocol)
        if (text := config.text(sessions)) and session_file(text) is None:
            yield Finding(f"{sessions}: {text} is not type:/path/name; {SESSIONS}", fatal=False)
        yield from _writable(config, sessions, session_file(text), SESSIONS)
        if config.boolean(config.mirror("smtp_sasl_auth_enable", protocol)):
            refusals = config.mirror("smtp_sasl_auth_cache_name", protocol)
            yield from _writable(config, refusals, refusal_path(config.text(refusals)), REFUSALS)
    levels = (config.mirror("smtp_tls_loglevel", protocol) for protocol in Protocol)
    if any(config.integer(level) >= MESSAGES for level in levels):
        trace = config.text("postrio_tls_trace_file")
        path = Path(trace) if trace else None
        yield from _writable(config, "postrio_tls_trace_file", path, TRACE)


def _unused(config: Config) -> Iterator[Finding]:
    """Passwords that somebody has configured, and nobody uses."""
    for protocol in Protocol:
        passwords = config.mirror("smtp_sasl_password_maps", protocol)
        switch = config.mirror("smtp_sasl_auth_enable", protocol)
        if config.text(passwords) and not config.boolean(switch):
            text = f"{passwords} is set, but {switch} = no: there is no logging in"
            yield Finding(text, fatal=False)


def _writable(config: Config, name: str, path: Path | None, then: str) -> Iterator[Finding]:
    if path is None or path.parent == Path(config.text("queue_directory")):
        return  # of the queue directory everything is said already
    if not os.access(path if os.access(path, os.F_OK) else path.parent, os.W_OK):
        yield Finding(f"{name}: {path} cannot be written; {then}", fatal=False)


def _entries(config: Config) -> Iterator[Finding]:
    """Entries of tables that defer all mail that they are for."""
    files = Contexts()
    for protocol in Protocol:
        said: list[str] = []
        try:
            for policy in TlsPolicies.from_config(config, protocol).listed():
                if isinstance(policy, TlsPolicyError):
                    said.append(str(policy))
                    continue
                try:
                    if policy.anchors.trust_files:
                        files.check(policy)
                except TlsFilesError as exc:
                    said.append(f"{config.mirror('smtp_tls_policy_maps', protocol)}: {exc}")
            sasl = SaslClient.from_config(config, protocol)
            said += sasl.mistakes() if sasl is not None else ()
        except ConfigError:
            continue  # told already
        except TableError as exc:
            said.append(str(exc))
        for text in said:
            yield Finding(f"{text}; its mail will wait", fatal=False)


def _transports(config: Config) -> Iterator[Finding]:
    """Names of transports that are none. (make_hand_over() looks at that of best_mx_transport.)"""
    usual = config.text("default_transport").partition(":")[0].strip()
    if usual and usual not in (*TRANSPORTS, *OTHERS):
        text = f"default_transport: there is no transport {usual}: such mail will wait"
        yield Finding(text, fatal=False)
    for word in config.words("defer_transports"):
        if word not in TRANSPORTS:
            text = f"defer_transports: {word} is none of {', '.join(TRANSPORTS)}: no mail waits"
            yield Finding(text, fatal=False)


def _usual_nexthop(config: Config) -> Iterator[Finding]:
    """Where all mail goes that transport_maps leaves alone, if that is written down."""
    parameter, protocol, nexthop = _usual(config)
    if protocol is None or not nexthop:
        return
    try:
        check_nexthop(nexthop, NetworkSettings.from_config(config, protocol).endpoints)
    except ConfigError:
        pass  # told by _parts()
    except ResolveError as exc:
        why = exc.reason.removeprefix("mail system configuration error: ")
        yield Finding(f"{parameter}: {why}", fatal=True)


def _usual(config: Config) -> tuple[str, Protocol | None, str]:
    """The parameter that names this nexthop, its protocol, if it has one, and the nexthop."""
    transport, _, nexthop = (
        part.strip() for part in config.text("default_transport").partition(":")
    )
    parameter = "default_transport" if nexthop else "relayhost"
    return parameter, TRANSPORTS.get(transport or "smtp"), nexthop or config.text("relayhost")


def _lmtp_ports(config: Config) -> Iterator[Finding]:
    """LMTP at the port of SMTP, where that is written down; of others the log tells."""
    places = [("lmtp_fallback_relay", word) for word in config.words("lmtp_fallback_relay")]
    if config.is_set("lmtp_tcp_port"):
        places.append(("lmtp_tcp_port", "localhost"))  # whoever names no port
    parameter, protocol, nexthop = _usual(config)
    if protocol is Protocol.LMTP and nexthop:
        places.append((parameter, nexthop))
    transport, _, nexthop = config.text("best_mx_transport").partition(":")
    if TRANSPORTS.get(transport.strip()) is Protocol.LMTP and nexthop.strip():
        places.append(("best_mx_transport", nexthop.strip()))
    found = []
    for parameter, nexthop in places:
        with suppress(ConfigError, ResolveError):  # told elsewhere
            endpoints = NetworkSettings.from_config(config, Protocol.LMTP).endpoints
            if SMTP_PORT in check_nexthop(nexthop, endpoints):
                found.append(parameter)
    if found:
        yield Finding(f"{', '.join(dict.fromkeys(found))}: {WRONG_PORT}", fatal=False)


def _resolver(config: Config) -> Iterator[Finding]:
    if not config.text("postrio_dns_server") and not RESOLV_CONF.exists():
        text = f"{RESOLV_CONF} does not exist, and postrio_dns_server names no DNS server"
        yield Finding(text, fatal=False)


def _descriptors(config: Config) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_PER_SLOT * config.integer("postrio_slot_limit")
    if hard != resource.RLIM_INFINITY and hard < wanted:
        text = f"only {hard} open files are allowed; {wanted} may be needed (postrio_slot_limit)"
        yield Finding(text, fatal=False)
