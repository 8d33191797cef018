"""`postrio deliver`: one delivery now, without a queue, by the code that workers run.

Answers for how an order (`order.py`) becomes delivery requests, and outcomes become lines and an
exit status. Recipients with one nexthop share requests, as many as there are recipients to one
(`smtp_destination_recipient_limit`), one after another over one session; different nexthops are
served at the same time.
"""

import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Final

import click
import trio

from protocol.address import split_address
from protocol.destination import DestinationError, parse_destination, split_nexthops
from protocol.outcome import Action, RecipientOutcome
from protocol.request import DeliveryRequest, Protocol, Recipient, RequestFlags
from worker.cli.exits import CommandError
from worker.cli.message import STANDARD_INPUT, open_message, read_message, send_options, spool
from worker.cli.options import config_choice, configured
from worker.cli.order import (
    REQUEST_LIMIT,
    Order,
    OrderError,
    parse_order,
    parse_recipient,
    parse_sender,
)
from worker.config.config import Config
from worker.content import Content
from worker.delivery.deliver import deliver
from worker.delivery.environment import Environment
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment
from worker.network.network import parse_dns_server
from worker.pool.privacy import private_memory
from worker.queue.conclusion import softened
from worker.status.events import RecipientProbed, RecipientSettled, Warned
from worker.status.log import JsonValue, outcome_to_json, probe_status
from worker.status.sinks import LogFormat, LogSettings, open_sink, standard_error
from worker.status.writer import LogWriter

_USE_CACHE: Final = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
QUEUE_ID: Final = "NOQUEUE"  # as Postfix logs what has no queue file
PARALLEL: Final = 20  # nexthops served at a time
JSON_KEYS: Final = ("recipient", "status", "dsn", "relay", "reply", "delays", "conn_use", "tls")
EPILOG = """\b
Examples:
  postrio deliver --sender a@here.example --recipient b@there.example mail.eml
  postrio deliver --nexthop '[127.0.0.1]:2525' --json \\
      --sender '' --recipient b@there.example < mail.eml
  postrio deliver --request request.json --json

\b
Exit status: 0 all sent (with --probe: accepted); 75 some deferred; 69 some bounced and none
deferred; 64 wrong use; 78 bad configuration.
"""


@click.command(epilog=EPILOG)
@click.argument("message", required=False, metavar="[MESSAGE FILE]")
@click.option("--nexthop", metavar="DESTINATION", help="Where to deliver instead of the domain.")
@click.option("--protocol", type=click.Choice(["smtp", "lmtp"]), help="Default: smtp.")
@click.option("--sender", "-f", metavar="ADDRESS", help="Reverse-path; '' is the null one.")
@click.option("--recipient", "-r", "recipients", multiple=True, metavar="ADDRESS")
@click.option("--request", metavar="FILE", help="Take everything from a JSON object; - is stdin.")
@click.option(
    "--probe", is_flag=True, help="Only ask whether the recipients are accepted; send nothing."
)
@click.option("--resolver", metavar="ADDR:PORT", help="Ask this DNS server.")
@click.option("--cache-socket", metavar="PATH", help="Find and keep sessions at this cache.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each recipient.")
@click.option("--log-format", type=click.Choice([item.value for item in LogFormat]), default="text")
@configured
@click.pass_context
def command(  # click gives every option its argument
    context: click.Context,
    message: str | None,
    nexthop: str | None,
    protocol: str | None,
    sender: str | None,
    recipients: tuple[str, ...],
    request: str | None,
    resolver: str | None,
    cache_socket: str | None,
    log_format: str,
    *,
    probe: bool,
    as_json: bool,
) -> int:
    """Deliver one message now, without a queue.

    Without a file the message comes from standard input. Without --nexthop the domain of each
    recipient decides. The log goes to standard error. With --probe no message is read.
    """
    try:
        if request is not None:
            given = (message, nexthop, protocol, sender, resolver, cache_socket)
            if recipients or probe or any(value is not None for value in given):
                raise click.UsageError("--request replaces every other option of the delivery")
            order = order_of_request(request)
        else:
            if probe and message is not None:
                raise click.UsageError("--probe sends no message: it takes no file")
            order = order_of_options(
                message=message or STANDARD_INPUT,
                nexthop=nexthop or "",
                protocol=protocol or "smtp",
                sender=sender,
                recipients=recipients,
                resolver=resolver or "",
                cache_socket=cache_socket or "",
                probe=probe,
            )
        check_order(order)
    except OrderError as exc:
        raise click.UsageError(str(exc), context) from exc
    choice = config_choice(context)
    choice.overrides[:0] = order.config  # what -o says wins
    config = choice.load()
    outcomes = run_order(order, config, LogFormat(log_format))
    for outcome in outcomes:
        status = probe_status(outcome) if order.probe else outcome.action.value
        line = json.dumps(json_line(outcome, status)) if as_json else text_line(outcome, status)
        click.echo(line)
    return exit_status(outcomes)


def order_of_request(path: str) -> Order:
    """The order in a JSON file, or on standard input. Raises OrderError, CommandError."""
    with open_message(path) as file:
        try:
            octets = file.read(REQUEST_LIMIT + 1)
        except OSError as exc:
            raise CommandError(f"{path}: {exc.strerror}", os.EX_IOERR) from exc
    order = parse_order(octets)
    if path == STANDARD_INPUT and order.message == STANDARD_INPUT and not order.probe:
        raise OrderError("message: missing (standard input is the request)")
    return order


def order_of_options(
    *,
    message: str,
    nexthop: str,
    protocol: str,
    sender: str | None,
    recipients: Sequence[str],
    resolver: str,
    cache_socket: str,
    probe: bool = False,
) -> Order:
    """The order in the options of the command line. Raises OrderError."""
    if sender is None:
        raise OrderError("--sender is missing ('' is the null sender)")
    if not recipients:
        raise OrderError("--recipient is missing")
    return Order(
        message=message,
        sender=parse_sender(sender, "--sender"),
        recipients=tuple(
            Recipient(address=parse_recipient(text, "--recipient"), key=position)
            for position, text in enumerate(recipients)
        ),
        nexthop=nexthop,
        protocol=Protocol(protocol),
        resolver=resolver,
        cache_socket=cache_socket,
        probe=probe,
    )


def check_order(order: Order) -> None:
    """Refuse what could only fail later, and would then look like the peer's fault: OrderError."""
    if order.nexthop:
        try:
            # A path may hold spaces and commas: it is one nexthop, here as for who delivers.
            path = order.nexthop.startswith("unix:")
            for nexthop in (order.nexthop,) if path else split_nexthops(order.nexthop):
                parse_destination(nexthop, order.protocol)
        except DestinationError as exc:
            raise OrderError(f"nexthop: {exc}") from exc
    if order.resolver:
        try:
            parse_dns_server(order.resolver)
        except ValueError as exc:
            raise OrderError(f"resolver: {exc}") from exc


def run_order(order: Order, config: Config, log_format: LogFormat) -> list[RecipientOutcome]:
    """Carry out an order; returns the outcomes in the order of the recipients.

    Raises CommandError (the message cannot be read), ConfigError.
    """
    with open_message(order.message) if not order.probe else BytesIO() as file:
        message = read_message(file)
        content, facts = spool(message.blocks())
    options = send_options(
        (recipient.address for recipient in order.recipients),
        order.sender,
        eight_bit_header=message.eight_bit_header,
        requested=order.smtputf8 if config.boolean("smtputf8_enable") else False,
    )
    now = time.time()
    protocol = order.protocol
    request = DeliveryRequest(
        queue_id=QUEUE_ID,
        transport=protocol.value,
        protocol=protocol,
        nexthop=order.nexthop,
        sender=order.sender,
        recipients=order.recipients,
        size=facts.octets,
        encoding=order.encoding or facts.encoding,
        options=options,
        envelope_id=order.envelope_id,
        ret=order.ret,
        # Who names a cache wants it used, for however few messages.
        flags=(_USE_CACHE if order.cache_socket else RequestFlags.NONE)
        | (RequestFlags.USER_PROBE if order.probe else RequestFlags.NONE),
        arrival=now - order.age,
        active=now,
        client=order.client,
    )
    settings = LogSettings.from_config(config, log_format)
    # Whatever maillog_file says: standard output is for the result.
    log = LogWriter(
        open_sink(replace(settings, maillog_file=""), fallback=standard_error), settings
    )
    try:
        for warning in config.warnings:
            log.emit(Warned(warning))
        environment = make_environment(
            config,
            log.emit,
            time.time,
            random.Random(),
            resolver=order.resolver,
            cache_socket=Path(order.cache_socket) if order.cache_socket else None,
        )
        with closing(environment):
            limit = config.integer(
                config.for_transport("destination_recipient_limit", protocol.value)
            )
            requests = split_request(request, config.text("myorigin"), limit)
            stop_limit = config.seconds("postrio_shutdown_timeout")
            outcomes = _deliver_all(
                list(requests),
                content,
                environment,
                log,
                stop_limit,
                soft_bounce=config.boolean("soft_bounce"),
            )
    finally:
        content.close()
        log.close()
    return sorted(outcomes, key=lambda outcome: outcome.recipient.key)


def split_request(
    request: DeliveryRequest, origin: str, limit: int
) -> Iterator[list[DeliveryRequest]]:
    """The requests that one becomes: a list for each nexthop, of at most `limit` recipients each.

    `limit` 0: no limit. A recipient without a domain belongs to `origin`.
    """
    groups: dict[str, list[Recipient]] = {}
    for recipient in request.recipients:
        domain = split_address(recipient.address)[1] or origin
        groups.setdefault(request.nexthop or domain.lower(), []).append(recipient)
    for nexthop, recipients in groups.items():
        step = limit or len(recipients)
        yield [
            replace(request, nexthop=nexthop, recipients=tuple(recipients[start : start + step]))
            for start in range(0, len(recipients), step)
        ]


def exit_status(outcomes: Iterable[RecipientOutcome]) -> int:
    """0: all sent; EX_TEMPFAIL: some deferred; EX_UNAVAILABLE: some bounced, none deferred."""
    actions = {outcome.action for outcome in outcomes}
    if Action.DEFERRED in actions:
        return os.EX_TEMPFAIL
    return os.EX_UNAVAILABLE if Action.BOUNCED in actions else os.EX_OK


def json_line(outcome: RecipientOutcome, status: str) -> dict[str, JsonValue]:
    """One recipient's end as --json prints it; `status`: its word for that."""
    found = {**outcome_to_json(outcome), "status": status}
    return {key: found[key] for key in JSON_KEYS}


def text_line(outcome: RecipientOutcome, status: str) -> str:
    """One recipient's end for people; `status`: the word for it."""
    return f"{outcome.recipient.address}: {status} ({outcome.reason})"


# --- doing it ----------------------------------------------------------------------------------


def _deliver_all(
    groups: Sequence[Sequence[DeliveryRequest]],
    content: Content,
    environment: Environment,
    log: LogWriter,
    stop_limit: float,
    *,
    soft_bounce: bool,
) -> list[RecipientOutcome]:
    """Carry out all requests; see _Deliveries."""

    async def run() -> list[RecipientOutcome]:
        deliveries = _Deliveries(content, environment, log, soft_bounce=soft_bounce)
        async with trio.open_nursery() as logging:
            await logging.start(log.run)
            await deliveries.run(groups, stop_limit)
            logging.cancel_scope.cancel()
        return deliveries.outcomes

    with private_memory():  # passwords and keys of TLS connections are in it
        return trio.run(run)


class _Deliveries:
    """The deliveries of one call, `PARALLEL` nexthops at a time.

    SIGTERM and SIGINT end it early: sessions whose content is under way have some time to finish,
    and every recipient still has its outcome.
    """

    def __init__(
        self, content: Content, environment: Environment, log: LogWriter, *, soft_bounce: bool
    ) -> None:
        """`soft_bounce`: nobody is bounced (the parameter of this name)."""
        self.outcomes: list[RecipientOutcome] = []
        self._soft_bounce = soft_bounce
        self._content = content
        self._environment = environment
        self._log = log
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self._slots: set[DeliverySlot] = set()
        self._stopping = False

    async def run(self, groups: Sequence[Sequence[DeliveryRequest]], stop_limit: float) -> None:
        """Serve every group; `stop_limit`: seconds to finish after a signal."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as watching:
                async with trio.open_nursery() as serving:
                    watching.start_soon(self._watch, signals, serving.cancel_scope, stop_limit)
                    for requests in groups:
                        serving.start_soon(self._serve, requests)
                watching.cancel_scope.cancel()

    async def _watch(
        self, signals: AsyncIterator[int], serving: trio.CancelScope, stop_limit: float
    ) -> None:
        async for _ in signals:
            self._stopping = True
            for slot in self._slots:
                slot.stop()
            serving.deadline = min(serving.deadline, trio.current_time() + stop_limit)

    async def _serve(self, requests: Sequence[DeliveryRequest]) -> None:
        """Requests to one nexthop, one after another over one session where the peer lets us."""
        unsettled = list(requests)
        begun = False
        slot = DeliverySlot(lambda: unsettled[1] if len(unsettled) > 1 else None)
        try:
            async with self._limiter:
                self._slots.add(slot)
                if self._stopping:
                    slot.stop()
                begun = True
                while unsettled:
                    result = await deliver(unsettled[0], self._content, self._environment, slot)
                    outcomes = result.outcomes
                    if self._soft_bounce and not unsettled[0].probe:
                        outcomes = tuple(map(softened, outcomes))
                    self._settle(unsettled.pop(0), outcomes)
                await slot.release()
        finally:
            self._slots.discard(slot)
            for request in unsettled:  # cut off: of the first nobody knows how far it came
                doubt = begun and request is unsettled[0] and not request.probe
                self._settle(
                    request, [_interrupted(item, doubt=doubt) for item in request.recipients]
                )

    def _settle(self, request: DeliveryRequest, outcomes: Iterable[RecipientOutcome]) -> None:
        for outcome in outcomes:
            self.outcomes.append(outcome)
            kind = RecipientProbed if request.probe else RecipientSettled
            self._log.emit(kind(QUEUE_ID, request.protocol.value, outcome))


def _interrupted(recipient: Recipient, *, doubt: bool) -> RecipientOutcome:
    """`doubt`: some of the message may have been sent."""
    return RecipientOutcome(
        recipient=recipient,
        action=Action.DEFERRED,
        dsn="4.3.2",
        reason=f"delivery was interrupted{' -- message may be sent more than once' * doubt}",
        in_doubt=doubt,
    )
