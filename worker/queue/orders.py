"""Orders of operators, and what is told them: how both cross the control socket.

An order is one frame with an attribute list. Each answer frame is one JSON object; the last one
says `"end": true`, or `"error"` with a sentence. The content of a message follows an object that
announces it, as frames of octets, ended by an empty one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from protocol.attributes import Value, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from worker.queue.records import MessageState, MessageSummary, RecipientSummary
from worker.queue.store import StoreError
from worker.queue.submission import decode_list

ORDER_LIMIT: Final = 4 * 1024 * 1024  # octets of an order: some 100,000 queue ids
ANSWER_LIMIT: Final = 16 * 1024 * 1024  # octets of an answer: 1000 recipients with long reasons

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Answer = dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an operator wants. Empty texts narrow nothing down."""

    request: str
    queue_ids: frozenset[str] | None = None  # None: all messages
    domain: str = ""  # flush: of recipients
    after: str = ""  # list: the queue id before the page
    limit: int = 1000  # list: messages


def encode_order(order: Order) -> bytes:
    """The order as an attribute list. Raises StoreError if it cannot be one."""
    attributes: list[tuple[str, Value | int]] = [
        ("request", order.request),
        ("all", int(order.queue_ids is None)),
        ("domain", order.domain),
        ("after", order.after),
        ("limit", order.limit),
    ]
    attributes += [("queue_id", queue_id) for queue_id in sorted(order.queue_ids or ())]
    try:
        octets = encode(attributes)
    except LocalProtocolError as exc:
        raise StoreError(f"this cannot be asked of the queue: {exc}") from exc
    if len(octets) > ORDER_LIMIT:
        raise StoreError("too many queue ids for one order")
    return octets


def decode_order(data: bytes) -> Order:
    """The order again. Raises RemoteProtocolError."""
    attributes = decode_list(data, ORDER_LIMIT)
    match attributes[:5]:
        case (
            ("request", str(request)),
            ("all", "0" | "1" as everything),
            ("domain", str(domain)),
            ("after", str(after)),
            ("limit", str(limit)),
        ) if limit.isascii() and limit.isdecimal() and len(limit) < 10:
            pass
        case _:
            raise RemoteProtocolError("an order needs request, all, domain, after and limit")
    queue_ids = set[str]()
    for name, value in attributes[5:]:
        if name != "queue_id" or not isinstance(value, str):
            raise RemoteProtocolError(f"unexpected attribute {name!r:.60}")
        queue_ids.add(value)
    return Order(
        request=request,
        queue_ids=None if everything == "1" else frozenset(queue_ids),
        domain=domain,
        after=after,
        limit=int(limit),
    )


def encode_answer(answer: Mapping[str, object]) -> bytes:
    """One answer frame."""
    return json.dumps(answer).encode("ascii")


def decode_answer(data: bytes) -> Answer:
    """One answer frame. Raises RemoteProtocolError."""
    try:
        answer = json.loads(data)
    except ValueError as exc:
        raise RemoteProtocolError("an answer that is no JSON") from exc
    if not isinstance(answer, dict):
        raise RemoteProtocolError("an answer that is no JSON object")
    return answer


def summary_to_json(summary: MessageSummary) -> dict[str, object]:
    """One message of a list."""
    return {
        "queue_id": summary.queue_id,
        "state": summary.state.value,
        "sender": summary.sender,
        "arrival": summary.arrival,
        "size": summary.size,
        "next_attempt": summary.next_attempt,
        "recipient_count": summary.recipient_count,
        "recipients": [
            {"address": one.address, "reason": one.reason, "in_doubt": one.in_doubt}
            for one in summary.recipients
        ],
    }


def summary_from_json(answer: Answer) -> MessageSummary:
    """The message again. Raises RemoteProtocolError."""
    try:
        due = answer["next_attempt"]
        return MessageSummary(
            queue_id=str(answer["queue_id"]),
            state=MessageState(answer["state"]),
            sender=str(answer["sender"]),
            arrival=float(cast("float", answer["arrival"])),
            size=int(cast("int", answer["size"])),
            next_attempt=None if due is None else float(cast("float", due)),
            recipient_count=int(cast("int", answer["recipient_count"])),
            recipients=tuple(
                RecipientSummary(
                    address=str(one["address"]),
                    reason=str(one["reason"]),
                    in_doubt=bool(one["in_doubt"]),
                )
                for one in cast("list[dict[str, Json]]", answer["recipients"])
            ),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise RemoteProtocolError("a message in the answer is not complete") from exc
