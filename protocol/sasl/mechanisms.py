"""All mechanisms, what each is worth, and which one to use.

Of those that the server offers and the configuration allows, the strongest is taken: the order of
`MECHANISMS`. Which class a mechanism falls in is Cyrus SASL's word, so that the options of
`smtp_sasl_security_options` mean what they mean in Postfix.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, Flag, auto
from types import MappingProxyType
from typing import Final

from protocol.sasl.gssapi import Gssapi
from protocol.sasl.mechanism import Login, Mechanism
from protocol.sasl.oauth import OAuthBearer, XOAuth2
from protocol.sasl.scram import ScramSha1, ScramSha1Plus, ScramSha256, ScramSha256Plus
from protocol.sasl.simple import CramMd5, External, LoginMechanism, Plain


class Proof(Enum):
    """What a mechanism proves who we are with."""

    PASSWORD = "password"
    TOKEN = "token"
    CERTIFICATE = "client certificate"
    TICKET = "Kerberos ticket"


class Merit(Flag):
    """What is good about a mechanism; a security option asks for one of these."""

    NONE = 0
    NOPLAINTEXT = auto()  # what is sent does not give the secret away
    NOACTIVE = auto()  # nor to somebody who takes the server's place
    NODICTIONARY = auto()  # who has listened cannot try out passwords
    NOANONYMOUS = auto()  # it says who we are
    MUTUAL_AUTH = auto()  # the server proves who it is
    FORWARD_SECRECY = auto()  # no mechanism here has it


# smtp_sasl_security_options -> what it asks for.
SECURITY_OPTIONS: Final[Mapping[str, Merit]] = MappingProxyType(
    {merit.name.lower(): merit for merit in Merit if merit.name}
)


@dataclass(frozen=True, slots=True)
class _Row:
    kind: type[Mechanism]
    proof: Proof
    merits: Merit

    @property
    def bound(self) -> bool:
        return self.kind.name.endswith("-PLUS")


_SCRAM: Final = Merit.NOPLAINTEXT | Merit.NOACTIVE | Merit.NOANONYMOUS | Merit.MUTUAL_AUTH
_EXTERNAL: Final = Merit.NOPLAINTEXT | Merit.NOACTIVE | Merit.NODICTIONARY | Merit.NOANONYMOUS
# As in Cyrus, without NODICTIONARY: where a key was made of a password, who hears a ticket that is
# encrypted with it can try passwords out.
_GSSAPI: Final = Merit.NOPLAINTEXT | Merit.NOACTIVE | Merit.NOANONYMOUS | Merit.MUTUAL_AUTH

# Strongest first. Tokens come last: only who takes passwords off the list, or has no password,
# means his secret to be one.
MECHANISMS: Final[Sequence[_Row]] = (
    _Row(External, Proof.CERTIFICATE, _EXTERNAL),
    _Row(Gssapi, Proof.TICKET, _GSSAPI),
    _Row(ScramSha256Plus, Proof.PASSWORD, _SCRAM),
    _Row(ScramSha1Plus, Proof.PASSWORD, _SCRAM),
    _Row(ScramSha256, Proof.PASSWORD, _SCRAM),
    _Row(ScramSha1, Proof.PASSWORD, _SCRAM),
    _Row(CramMd5, Proof.PASSWORD, Merit.NOPLAINTEXT | Merit.NOANONYMOUS),
    _Row(Plain, Proof.PASSWORD, Merit.NOANONYMOUS),
    _Row(LoginMechanism, Proof.PASSWORD, Merit.NOANONYMOUS),
    _Row(OAuthBearer, Proof.TOKEN, Merit.NODICTIONARY | Merit.NOANONYMOUS),
    _Row(XOAuth2, Proof.TOKEN, Merit.NODICTIONARY | Merit.NOANONYMOUS),
)

NAMES: Final = tuple(row.kind.name for row in MECHANISMS)


def proof_of(name: str) -> Proof:
    """What a mechanism of `NAMES` proves who we are with."""
    return next(row.proof for row in MECHANISMS if row.kind.name == name)


def choose(
    offered: Collection[str],
    proofs: Collection[Proof],
    demands: Merit,
    *,
    encrypted: bool,
    bindable: bool,
) -> str | None:
    """The name of the mechanism to use; None: there is none.

    `offered`: names in upper case. `proofs`: what we have. `encrypted`: the session is, by TLS.
    `bindable`: and its channel can be bound to.
    """
    for row in MECHANISMS:
        if (
            row.kind.name in offered
            and row.proof in proofs
            and demands in row.merits
            and (bindable or not row.bound)
            and (encrypted or row.proof is not Proof.CERTIFICATE)
            and not row.kind.lacks()
        ):
            return row.kind.name
    return None


def lacking(offered: Collection[str], proofs: Collection[Proof]) -> str:
    """What is missing here to use one of these mechanisms; empty: nothing.

    `offered` and `proofs` as in choose().
    """
    wanted = [row for row in MECHANISMS if row.kind.name in offered and row.proof in proofs]
    return next((lack for row in wanted if (lack := row.kind.lacks())), "")


def make(name: str, login: Login) -> Mechanism:
    """Begin an exchange of the mechanism `name`, one of `NAMES`."""
    return next(row.kind for row in MECHANISMS if row.kind.name == name)(login)
