"""What `postrio deliver` is asked to do, from its options or from a JSON object. Pure functions.

The JSON comes from other programs, so nothing in it is taken on trust: size and depth are bounded,
every type is checked, unknown keys are refused, and each refusal names the place by its path
("recipients[1].notify").
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from protocol.address import AddressError, parse_mailbox, parse_reverse_path
from protocol.request import ClientFacts, Notify, Protocol, Recipient, Ret
from worker.cli.message import STANDARD_INPUT

REQUEST_LIMIT: Final = 16 * 1024 * 1024  # octets of JSON: some 100,000 recipients
RECIPIENT_LIMIT: Final = 50_000
TEXT_LIMIT: Final = 4_096  # characters of one text; an address or a path is shorter

NOTIFY_WORDS: Final[Mapping[str, Notify]] = {
    "success": Notify.SUCCESS,
    "failure": Notify.FAILURE,
    "delay": Notify.DELAY,
    "never": Notify.NEVER,
}
RET_WORDS: Final[Mapping[str, Ret]] = {"full": Ret.FULL, "hdrs": Ret.HDRS}
BODY_WORDS: Final[Mapping[str, str]] = {"7bit": "7bit", "8bitmime": "8bit"}
PROTOCOL_WORDS: Final[Mapping[str, Protocol]] = {"smtp": Protocol.SMTP, "lmtp": Protocol.LMTP}
XFORWARD_FIELDS: Final[Mapping[str, str]] = {  # attribute of XFORWARD -> field of ClientFacts
    "name": "name",
    "addr": "address",
    "port": "port",
    "proto": "protocol",
    "helo": "helo",
    "ident": "ident",
}
LONGEST_AGE: Final = 1e9  # seconds: some thirty years


class OrderError(ValueError):
    """The request is not one: which part, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One call of `postrio deliver`. Empty texts: not given."""

    sender: str  # internal form; empty: the null reverse-path
    recipients: tuple[Recipient, ...]  # at least one; key: its position
    message: str = STANDARD_INPUT  # a path
    nexthop: str = ""  # the recipients' domains decide
    protocol: Protocol = Protocol.SMTP
    envelope_id: str = ""
    ret: Ret = Ret.UNSPECIFIED
    encoding: str = ""  # "7bit", "8bit"; empty: look at the content
    smtputf8: bool | None = None  # None: asked for where an address needs it
    client: ClientFacts = field(default_factory=ClientFacts)
    probe: bool = False  # only try the addresses; no message is read
    age: float = 0.0  # seconds that the message has been in the asker's queue
    config: tuple[str, ...] = ()  # "name=value"
    resolver: str = ""  # ADDR:PORT
    cache_socket: str = ""


def parse_order(octets: bytes) -> Order:
    """The order in a JSON object. Raises OrderError."""
    if len(octets) > REQUEST_LIMIT:
        raise OrderError(f"the request is larger than {REQUEST_LIMIT} octets")
    try:
        found = json.loads(octets.decode("utf-8"), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError as exc:
        raise OrderError(f"the request is not UTF-8 text (octet {exc.start})") from exc
    except json.JSONDecodeError as exc:
        raise OrderError(f"no JSON: {exc.msg} (line {exc.lineno}, column {exc.colno})") from exc
    except OrderError:
        raise
    except (RecursionError, OverflowError) as exc:
        raise OrderError(
            "no JSON that could be meant: nested too deeply, or a number too large"
        ) from exc
    except ValueError as exc:  # a number of thousands of digits
        raise OrderError(f"no JSON that could be meant: {exc}") from exc
    return _order(_object(found, "the request"))


def parse_notify(text: str, place: str = "notify") -> Notify:
    """The NOTIFY of RFC 3461 in words: "success,failure". Empty: unspecified."""
    notify = Notify.UNSPECIFIED
    for part in filter(None, (word.strip().lower() for word in text.split(","))):
        notify |= _word(part, NOTIFY_WORDS, place)
    if notify & Notify.NEVER and notify != Notify.NEVER:
        raise OrderError(f"{place}: never excludes the other words")
    return notify


def parse_ret(text: str, place: str = "ret") -> Ret:
    """The RET of RFC 3461 in words. Empty: unspecified."""
    return _word(text.lower(), RET_WORDS, place) if text else Ret.UNSPECIFIED


def parse_recipient(text: str, place: str = "recipient") -> str:
    """The internal form of a recipient's address. Raises OrderError."""
    try:
        return parse_mailbox(text)
    except AddressError as exc:
        raise OrderError(f"{place}: {exc}") from exc


def parse_sender(text: str, place: str = "sender") -> str:
    """The internal form of a sender; empty or <> is the null reverse-path. Raises OrderError."""
    try:
        return parse_reverse_path(text)
    except AddressError as exc:
        raise OrderError(f"{place}: {exc}") from exc


def check_orcpt(text: str, place: str = "orcpt") -> str:
    """The same text, if it is `type;address` (RFC 3461 section 4.2). Raises OrderError."""
    kind, semicolon, address = text.partition(";")
    if text and not (kind and semicolon and address and text.isprintable()):
        raise OrderError(
            f"{place}: expected an address type and an address, as in rfc822;a@example.com"
        )
    return text


def check_envelope_id(text: str, place: str = "envid") -> str:
    """The same text, if it can be an ENVID (RFC 3461 section 4.4). Raises OrderError."""
    if len(text) > 100 or not text.isascii() or (text and not text.isprintable()):
        raise OrderError(f"{place}: expected at most 100 printable ASCII characters")
    return text


# --- the JSON object, part by part -------------------------------------------------------------


_Value = TypeVar("_Value")


def _order(found: Mapping[str, object]) -> Order:
    _refuse_unknown(found, _TAKEN, "")
    if "recipients" not in found:
        raise OrderError("recipients: missing")
    if "sender" not in found:
        raise OrderError('sender: missing ("" is the null sender)')
    protocol = _text(found, "protocol")
    body = _text(found, "body").lower()
    return Order(
        message=_text(found, "message") or STANDARD_INPUT,
        sender=parse_sender(_text(found, "sender")),
        recipients=_recipients(found["recipients"]),
        nexthop=_text(found, "nexthop"),
        protocol=_word(protocol.lower(), PROTOCOL_WORDS, "protocol") if protocol else Protocol.SMTP,
        envelope_id=check_envelope_id(_text(found, "envid")),
        ret=parse_ret(_text(found, "ret")),
        encoding=_word(body, BODY_WORDS, "body") if body else "",
        smtputf8=_boolean(found, "smtputf8"),
        client=_client(found.get("xforward")),
        age=_seconds(found, "age"),
        probe=_boolean(found, "probe") or False,
        config=_settings(found.get("config")),
        resolver=_text(found, "resolver"),
        cache_socket=_text(found, "cache_socket"),
    )


_TAKEN: Final = (
    *("message", "sender", "recipients", "nexthop", "protocol", "envid", "ret", "body", "smtputf8"),
    *("xforward", "age", "probe", "config", "resolver", "cache_socket"),
)
_RECIPIENT_TAKEN: Final = ("address", "notify", "orcpt")


def _recipients(found: object) -> tuple[Recipient, ...]:
    if not isinstance(found, list):
        raise OrderError(f"recipients: expected a list, not {_kind(found)}")
    if not found:
        raise OrderError("recipients: the list is empty")
    if len(found) > RECIPIENT_LIMIT:
        raise OrderError(f"recipients: more than {RECIPIENT_LIMIT}")
    return tuple(_recipient(item, position) for position, item in enumerate(found))


def _recipient(item: object, position: int) -> Recipient:
    place = f"recipients[{position}]"
    found = _object(item, place)
    _refuse_unknown(found, _RECIPIENT_TAKEN, f"{place}.")
    if "address" not in found:
        raise OrderError(f"{place}.address: missing")
    return Recipient(
        address=parse_recipient(_text(found, "address", place), f"{place}.address"),
        notify=parse_notify(_text(found, "notify", place), f"{place}.notify"),
        orcpt=check_orcpt(_text(found, "orcpt", place), f"{place}.orcpt"),
        key=position,
    )


def _client(found: object) -> ClientFacts:
    if found is None:
        return ClientFacts()
    attributes = _object(found, "xforward")
    _refuse_unknown(attributes, XFORWARD_FIELDS, "xforward.")
    return ClientFacts(
        **{
            name: _text(attributes, attribute, "xforward")
            for attribute, name in XFORWARD_FIELDS.items()
        }
    )


def _settings(found: object) -> tuple[str, ...]:
    if found is None:
        return ()
    settings = []
    for name, value in _object(found, "config").items():
        match value:
            case bool():
                text = "yes" if value else "no"
            case str():
                text = value
            case int():
                text = str(value)
            case _:
                raise OrderError(f"config.{name}: expected a text, not {_kind(value)}")
        if "\n" in text or "\n" in name or "=" in name:
            raise OrderError(f"config.{name!r}: not a line of a main.cf")
        settings.append(f"{name}={text}")
    return tuple(settings)


def _without_doubles(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """An object in which a key stands once: of two, nobody knows which was meant."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise OrderError(f"{_shown(name)}: stands there twice")
        found[name] = value
    return found


def _object(found: object, place: str) -> Mapping[str, object]:
    if not isinstance(found, dict):
        raise OrderError(f"{place}: expected an object, not {_kind(found)}")
    return found


def _refuse_unknown(found: Mapping[str, object], known: Collection[str], prefix: str) -> None:
    for name in found:
        if name not in known:
            raise OrderError(f"{prefix}{_shown(name)}: unknown key ({', '.join(known)})")


def _text(found: Mapping[str, object], name: str, prefix: str = "") -> str:
    place = f"{prefix}.{name}" if prefix else name
    value = found.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OrderError(f"{place}: expected a text, not {_kind(value)}")
    if len(value) > TEXT_LIMIT:
        raise OrderError(f"{place}: longer than {TEXT_LIMIT} characters")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise OrderError(f"{place}: holds a character that no text has")
    return value


def _boolean(found: Mapping[str, object], name: str) -> bool | None:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise OrderError(f"{name}: expected true or false, not {_kind(value)}")
    return value


def _seconds(found: Mapping[str, object], name: str) -> float:
    value = found.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OrderError(f"{name}: expected a number of seconds, not {_kind(value)}")
    if not 0 <= value <= LONGEST_AGE:  # false for NaN, too
        raise OrderError(f"{name}: expected a number of seconds, 0 or more")
    return float(value)


def _word(text: str, words: Mapping[str, _Value], place: str) -> _Value:
    if text not in words:
        raise OrderError(f"{place}: unknown word '{_shown(text)}' ({', '.join(words)})")
    return words[text]


def _kind(value: object) -> str:
    kinds: Mapping[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds[type(value)]


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:60])
