"""How records become rows and rows become records. No SQL, no transactions.

Text that is no valid UTF-8 (addresses hold such octets as surrogate escapes) is stored as the
octets it stands for: `to_sql` on the way in, `text_factory` on the way out.
"""

import json
from typing import Final, NamedTuple

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import NOTHING_KNOWN, ClientFacts, Notify, Recipient, Ret, SendOptions
from worker.queue import schema
from worker.queue.records import MessageState, QueuedMessage

# Values of columns as flags: looked up, because making one takes longer than all the rest of a row.
_NOTIFY: Final = tuple(Notify(bits) for bits in range(16))
_OPTIONS: Final = tuple(SendOptions(bits) for bits in range(16))
_RETS: Final = tuple(Ret(number) for number in range(3))

STATES: Final = {
    schema.INCOMING: MessageState.INCOMING,
    schema.DEFERRED: MessageState.DEFERRED,
    schema.ACTIVE: MessageState.ACTIVE,
    schema.HOLD: MessageState.HOLD,
}


def text_factory(octets: bytes) -> str:
    """A text of a row."""
    return octets.decode("utf-8", "surrogateescape")


def to_sql(text: str) -> str | bytes:
    """What to bind for `text`, inside `CAST(? AS TEXT)`: SQLite itself looks at no encoding."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape")


def client_to_json(client: ClientFacts) -> str:
    """Facts about the client as the message table has them."""
    if client is NOTHING_KNOWN or client == NOTHING_KNOWN:
        return ""
    return json.dumps(
        [client.name, client.address, client.port, client.protocol, client.helo, client.ident]
    )


def client_from_json(text: str) -> ClientFacts:
    """The facts again."""
    if not text:
        return NOTHING_KNOWN
    name, address, port, protocol, helo, ident = json.loads(text)
    return ClientFacts(
        name=name, address=address, port=port, protocol=protocol, helo=helo, ident=ident
    )


def outcome_to_json(outcome: RecipientOutcome) -> str:
    """Everything of an outcome but the recipient, whose row this is kept in. Pure ASCII."""
    delays = outcome.delays
    return json.dumps(
        {
            "action": outcome.action.value,
            "dsn": outcome.dsn,
            "reason": outcome.reason,
            "reply": outcome.reply,
            "mta": outcome.mta,
            "relay": outcome.relay,
            "conn_use": outcome.conn_use,
            "delays": [delays.before_active, delays.active, delays.setup, delays.transmission],
            "dsn_announced": outcome.dsn_announced,
            "tls": outcome.tls,
            "in_doubt": outcome.in_doubt,
        }
    )


def outcome_from_json(text: str, recipient: Recipient) -> RecipientOutcome:
    """The outcome again, for the recipient of the same row."""
    fields = json.loads(text)
    return RecipientOutcome(
        recipient=recipient,
        action=Action(fields["action"]),
        dsn=fields["dsn"],
        reason=fields["reason"],
        reply=fields["reply"],
        mta=fields["mta"],
        relay=fields["relay"],
        conn_use=fields["conn_use"],
        delays=Delays(*fields["delays"]),
        dsn_announced=fields["dsn_announced"],
        tls=fields.get("tls", ""),  # rows written by 0.1.0 have none
        in_doubt=fields["in_doubt"],
    )


def reason_from_json(text: str) -> str:
    """Only why a recipient is still here; empty: not tried yet."""
    return str(json.loads(text)["reason"]) if text else ""


class RecipientRow(NamedTuple):
    """One recipient as claimed."""

    id: int
    settled: int
    notify: int
    address: str
    original: str
    orcpt: str
    outcome: str

    def recipient(self) -> Recipient:
        """The recipient, with its row as key."""
        return Recipient(
            address=self.address,
            original=self.original,
            orcpt=self.orcpt,
            notify=_NOTIFY[self.notify],
            key=self.id,
        )


class MessageRow(NamedTuple):
    """One message as claimed."""

    next_attempt: float
    id: int
    last: int
    queue_id: str
    attempts: int
    warned: int
    notice: int
    arrival: float
    size: int
    encoding: str
    options: int
    ret: int
    sender: str
    envelope_id: str
    client: str
    hops: int
    probe: int

    def message(self, rows: list[RecipientRow]) -> QueuedMessage:
        """The message, with these of its recipients."""
        recipients: list[Recipient] = []
        settled: list[RecipientOutcome] = []
        for row in rows:
            recipient = row.recipient()
            if row.settled:
                settled.append(outcome_from_json(row.outcome, recipient))
            else:
                recipients.append(recipient)
        return QueuedMessage(
            id=self.id,
            queue_id=self.queue_id,
            sender=self.sender,
            arrival=self.arrival,
            size=self.size,
            encoding=self.encoding,
            options=_OPTIONS[self.options],
            envelope_id=self.envelope_id,
            ret=_RETS[self.ret],
            client=client_from_json(self.client),
            attempts=self.attempts,
            warned=bool(self.warned),
            notice=bool(self.notice),
            recipients=tuple(recipients),
            settled=tuple(settled),
            due=self.next_attempt,
            hops=self.hops,
            probe=bool(self.probe),
        )


# What to select for these rows, in their order.
RECIPIENT_COLUMNS: Final = ", ".join(f"r.{field}" for field in RecipientRow._fields)
MESSAGE_COLUMNS: Final = ", ".join(MessageRow._fields)
