"""What accompanies an envelope: parameters of MAIL and RCPT, and XFORWARD (S075, S077 to S079).

Pure functions of the request and of what the server announced: nothing is sent that it did not.
A value that has no valid form on the wire is left out rather than refused, because the mail
matters more than its annotations.
"""

from functools import lru_cache
from typing import Final

from protocol import xtext
from protocol.address import quote
from protocol.capabilities import Capabilities
from protocol.command import Xforward
from protocol.request import ClientFacts, DeliveryRequest, Notify, Recipient, Ret

ENVID_LIMIT: Final = 100  # octets, RFC 3461 section 4.4
ORCPT_LIMIT: Final = 500  # octets, RFC 3461 section 4.2

_BODY: Final = {"7bit": "BODY=7BIT", "8bit": "BODY=8BITMIME"}
_NOTIFY: Final = tuple((int(flag), flag.name or "") for flag in Notify if flag)
_RET: Final = {Ret.FULL: "RET=FULL", Ret.HDRS: "RET=HDRS"}


def mail_parameters(
    request: DeliveryRequest, capabilities: Capabilities, size: int | None = None
) -> tuple[str, ...]:
    """The parameters of MAIL.

    `size`: octets to announce instead of `request.size`; 0: not known, because the content will
    be converted on its way, and not announced.
    """
    params = []
    octets = request.size if size is None else size
    if capabilities.size_announced and octets > 0:
        params.append(f"SIZE={octets}")
    if capabilities.eightbitmime and request.encoding in _BODY:
        params.append(_BODY[request.encoding])
    if capabilities.dummy_auth:
        params.append("AUTH=<>")
    if capabilities.smtputf8 and request.options.requires_smtputf8:
        params.append("SMTPUTF8")
    if capabilities.dsn:
        if request.ret in _RET:
            params.append(_RET[request.ret])
        if request.envelope_id and (envid := _xtext(request.envelope_id, ENVID_LIMIT)):
            params.append(f"ENVID={envid}")
    return tuple(params)


def rcpt_parameters(recipient: Recipient, capabilities: Capabilities) -> tuple[str, ...]:
    """The parameters of RCPT: NOTIFY as the sender asked, and ORCPT.

    Without an ORCPT of the sender's the address before our rewriting takes its place (RFC 3461
    section 5.2.1), as in Postfix.
    """
    if not capabilities.dsn:
        return ()
    params = []
    if recipient.notify:
        words = [name for flag, name in _NOTIFY if recipient.notify & flag]
        params.append(f"NOTIFY={','.join(words)}")
    if orcpt := _orcpt(recipient.orcpt, recipient.original or recipient.address):
        params.append(f"ORCPT={orcpt}")
    return tuple(params)


def xforward_commands(client: ClientFacts, capabilities: Capabilities) -> tuple[Xforward, ...]:
    """The XFORWARD commands to send before MAIL: none, one or two, announced attributes only."""
    known = client.name or client.address
    groups = (
        (("NAME", client.name), ("ADDR", client.address), ("PORT", client.port)),
        (
            ("PROTO", client.protocol),
            ("HELO", client.helo),
            ("IDENT", client.ident),
            ("SOURCE", "REMOTE" if known else "LOCAL"),
        ),
    )
    announced = [
        tuple(pair for pair in group if pair[0] in capabilities.xforward) for group in groups
    ]
    return tuple(Xforward(pairs) for pairs in announced if pairs)


@lru_cache(1024)  # as for the paths of MAIL and RCPT
def _orcpt(given: str, original: str) -> str:
    """The value of ORCPT, type and encoded address; empty if there is none to send."""
    kind, semicolon, address = given.partition(";")
    if not semicolon:
        kind, address = "rfc822", quote(original)
        if not address.isascii():
            kind = "utf-8"
    if not kind.isascii() or not kind.replace("-", "").isalnum() or not address:
        return ""
    encoded = _utf8_xtext(address) if kind.lower() == "utf-8" else _xtext(address, ORCPT_LIMIT)
    orcpt = f"{kind};{encoded}"
    return orcpt if encoded and len(orcpt) <= ORCPT_LIMIT else ""


def _xtext(text: str, limit: int) -> str:
    try:
        encoded = xtext.encode(text)
    except UnicodeEncodeError:
        return ""
    return encoded if len(encoded) <= limit else ""


def _utf8_xtext(text: str) -> str:
    try:
        return xtext.encode_utf8_address(text)
    except UnicodeEncodeError:
        return ""
