"""Security level x state of the server: what becomes of the mail, and what the log says.

The table is data, made from rows S099, S124 and S125 and from what Postfix's smtp(8) does with the
same servers (3.7, loglevel 1); where we differ on purpose it says so. Servers are scripted, on
loopback; the client is the product in the environment that a main.cf makes. One process, no names
to look up: the certificate must bear the name that the parameters ask for, whoever is connected to.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pytest
from trio.testing import trio_test

from protocol.outcome import Action
from tests.integration import pki
from tests.integration.pki import Pki
from tests.integration.tls_peers import Attempt, Client, listening
from tests.worker.peer import Answer, Fault, Peer, Phase
from tests.worker.tls_server import OLD, Break, Harm, ServerTls, server_context

pytestmark = pytest.mark.peer("openssl")  # it makes one of the certificates

LEVELS: Final = ("none", "may", "encrypt", "fingerprint", "verify", "secure")
AGED: Final = 301.0  # seconds in the queue: past minimal_backoff_time
PEER: Final = "127.0.0.1[127.0.0.1]"

# --- what a cell expects ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """How mail ends: `status` as in the log, and whether it went encrypted."""

    status: str  # "2.0.0 sent (...)"; with {peer} for host[address]
    encrypted: bool | None = None  # None: nothing was taken


CLEAR: Final = End("2.0.0 sent (250 2.0.0 queued)", encrypted=False)
TLS: Final = End("2.0.0 sent (250 2.0.0 queued)", encrypted=True)
UNVERIFIED: Final = End("4.7.5 deferred (Server certificate not verified)")
NOT_OFFERED: Final = End("4.7.4 deferred (TLS is required, but was not offered by host {peer})")
HANDSHAKE: Final = End("4.7.5 deferred (Cannot start TLS: handshake failure)")
LOST: Final = "4.4.2 deferred (lost connection with {peer} while "
LOST_EHLO: Final = End(LOST + "performing the EHLO handshake)")
LOST_STARTTLS: Final = End(LOST + "receiving the STARTTLS response)")
# RFC 5321 section 3.8: after a 421 the session is over. Postfix goes on with MAIL at may.
GOING: Final = End("4.3.2 deferred (host {peer} refused to talk to me: 421 4.3.2 going down)")
INJECTED: Final = End(
    "4.5.0 deferred (protocol error from {peer} while receiving the STARTTLS response: "
    "more was said behind the reply to STARTTLS)"
)


def refused(reply: str) -> End:
    """A refusal of STARTTLS. Postfix takes over the reply's own status, and bounces after a 5xx:
    a server's trouble with TLS is no reason to give mail back (S125)."""
    return End(f"4.7.5 deferred (TLS is required, but host {{peer}} refused to start TLS: {reply})")


# --- the servers --------------------------------------------------------------------------------

Script = Mapping[Phase, Answer]
ESTABLISHED: Final = "{} TLS connection established to {}:{}: {} with cipher "


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One server. `mandatory`: at levels without identity; `fingerprint` and `named` (verify and
    secure, which differ in the names alone) default to that. `aged`: at level may, once the message
    has waited for minimal_backoff_time; None: as before."""

    may: End
    mandatory: End
    named: End | None = None
    fingerprint: End | None = None
    aged: End | None = None
    trust: str = ""  # "" where no handshake comes to its end; at levels without identity
    leaf: str = "good"
    script: Script = field(default_factory=dict)
    offers: bool = True
    broken: Break | None = None
    again: bool = False
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    client_required: bool = False

    def expected(self, level: str) -> End:
        """At this level, when the message is new."""
        match level:
            case "none":
                return CLEAR
            case "may":
                return self.may
            case "encrypt":
                return self.mandatory
            case "fingerprint":
                return self.fingerprint or self.mandatory
            case _:
                return self.named or self.mandatory

    @property
    def version(self) -> str:
        """What is spoken with it, as in the log."""
        return self.newest.name.replace("_", ".")

    def peer(self, certificates: Pki) -> Peer:
        """The server."""
        if not self.offers:
            return Peer(self.script)
        old = self.oldest < ssl.TLSVersion.TLSv1_2
        context = server_context(
            certificates.leaf(self.leaf),
            oldest=self.oldest,
            newest=self.newest,
            ciphers=OLD if old else "",
            client_ca=str(certificates.ca_file()) if self.client_required else "",
            client_required=self.client_required,
        )
        return Peer(self.script, tls=ServerTls(context, broken=self.broken, again=self.again))


def certificate(leaf: str, trust: str, named: End = UNVERIFIED) -> State:
    """A server that works, with this certificate. `named`: at levels verify and secure."""
    return State(leaf=leaf, trust=trust, may=TLS, mandatory=TLS, fingerprint=TLS, named=named)


def cut(records: int, newest: ssl.TLSVersion, harm: Harm = Harm.CUT) -> State:
    """A handshake that breaks after so many records of the server, before its end on our side."""
    return State(
        may=HANDSHAKE, mandatory=HANDSHAKE, aged=CLEAR, broken=Break(records, harm), newest=newest
    )


def cut_later(records: int, newest: ssl.TLSVersion, harm: Harm = Harm.CUT) -> State:
    """One that breaks when our side is done with the handshake: EHLO is never answered."""
    return State(
        may=LOST_EHLO,
        mandatory=LOST_EHLO,
        aged=CLEAR,
        trust="Trusted",
        broken=Break(records, harm),
        newest=newest,
    )


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
# How many records a server's handshake has: ServerHello, CCS, EncryptedExtensions, Certificate,
# CertificateVerify, Finished; and ServerHello, Certificate, ServerKeyExchange, ServerHelloDone,
# NewSessionTicket, CCS, Finished. Behind the first one's come two tickets.
RECORDS: Final = {V12: 7, V13: 6}
TICKETS: Final = 2

STATES: Final[dict[str, State]] = {
    "good": certificate("good", "Trusted", TLS),
    "rsa": certificate("rsa", "Trusted", TLS),
    "wildcard": certificate("wildcard", "Trusted", TLS),
    "chain": certificate("chain", "Trusted", TLS),
    "deep-chain": certificate("deep-chain", "Trusted", TLS),
    "cn-only": certificate("cn-only", "Trusted", TLS),
    "san-wins": certificate("san-wins", "Trusted"),
    "nul-name": certificate("nul-name", "Trusted"),
    "wrong-name": certificate("wrong-name", "Trusted"),
    "idn": certificate("idn", "Trusted"),
    "client-purpose": certificate("client", "Untrusted"),
    "expired": certificate("expired", "Untrusted"),
    "not-yet": certificate("not-yet", "Untrusted"),
    "self-signed": certificate("self-signed", "Untrusted"),
    "expired-self-signed": certificate("expired-self-signed", "Untrusted"),
    "unknown-ca": certificate("unknown-ca", "Untrusted"),
    "missing-intermediate": certificate("missing-intermediate", "Untrusted"),
    "expired-ca": certificate("expired-ca", "Untrusted"),
    "tls-1.2": State(
        may=TLS, mandatory=TLS, fingerprint=TLS, named=TLS, trust="Trusted", newest=V12
    ),
    "not-offered": State(offers=False, may=CLEAR, mandatory=NOT_OFFERED),
    "refused-454": State(
        script={Phase.STARTTLS: "454 4.7.0 TLS not available"},
        may=CLEAR,
        mandatory=refused("454 4.7.0 TLS not available"),
    ),
    "refused-554": State(
        script={Phase.STARTTLS: "554 5.7.1 no TLS for you"},
        may=CLEAR,
        mandatory=refused("554 5.7.1 no TLS for you"),
    ),
    "cut-at-starttls": State(
        script={Phase.STARTTLS: Fault.CUT}, may=LOST_STARTTLS, mandatory=LOST_STARTTLS
    ),
    # Postfix throws away what stands behind the reply, and goes on.
    "injected": State(
        script={Phase.STARTTLS: "220 2.0.0 go ahead\n250-evil\n250 AUTH PLAIN"},
        may=INJECTED,
        mandatory=INJECTED,
    ),
    "garbage": cut(0, V13, Harm.GARBAGE),
    "alert": cut(0, V13, Harm.ALERT),
    "half": cut(2, V13, Harm.HALF),
    "flipped": cut(3, V13, Harm.FLIPPED),
    "flipped-1.2": cut(2, V12, Harm.FLIPPED),
    # At may it is better than nothing; Postfix takes it at encrypt as well.
    "tls-1.1": State(
        oldest=ssl.TLSVersion.TLSv1,
        newest=ssl.TLSVersion.TLSv1_1,
        may=TLS,
        mandatory=HANDSHAKE,
        trust="Trusted",
    ),
    # Postfix trusts an RSA key of 1024 bits.
    "weak-key": certificate("weak-key", "Untrusted"),
    "weak-digest": certificate("weak-digest", "Untrusted"),
    "refused-421": State(
        script={Phase.STARTTLS: "421 4.3.2 going down"}, may=GOING, mandatory=GOING
    ),
    "offered-again": State(
        again=True, may=TLS, mandatory=TLS, fingerprint=TLS, named=TLS, trust="Trusted"
    ),
    # In TLS 1.3 the client is done before the server says that it wanted more.
    "client-required": State(
        client_required=True, may=LOST_EHLO, mandatory=LOST_EHLO, aged=CLEAR, trust="Trusted"
    ),
    "client-required-1.2": State(
        client_required=True, newest=V12, may=HANDSHAKE, mandatory=HANDSHAKE, aged=CLEAR
    ),
    **{
        f"cut-{'1.2' if version is V12 else '1.3'}-after-{records}": (
            cut(records, version) if records < RECORDS[version] else cut_later(records, version)
        )
        for version in (V12, V13)
        for records in range(RECORDS[version] + (1 if version is V12 else 1 + TICKETS))
    },
}


# --- running it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


def main_cf(level: str, certificates: Pki) -> dict[str, str]:
    """The parameters of a level: by their defaults, but for what identifies the servers."""
    digests = [certificates.leaf(leaf).digest() for leaf in {s.leaf for s in STATES.values()}]
    return {
        "smtp_tls_security_level": level,
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": pki.HOST,
        "smtp_tls_secure_cert_match": pki.HOST,
        "smtp_tls_fingerprint_digest": "sha256",
        "smtp_tls_fingerprint_cert_match": " ".join(digests),
    }


def wrong(attempt: Attempt, peer: Peer, end: End) -> str:
    """How a cell differs from the table, for people; empty: it does not."""
    found = attempt.brief
    if found != end.status.format(peer=PEER):
        return found
    taken = [message.encrypted for message in peer.accepted]
    if taken != ([] if end.encrypted is None else [end.encrypted]):
        return f"{found}, but the server took {taken} (encrypted)"
    return ""


@pytest.mark.parametrize("level", LEVELS)
@trio_test
async def test_s099_what_becomes_of_new_mail_at(level: str, certificates: Pki) -> None:
    peers = {name: state.peer(certificates) for name, state in STATES.items()}
    found = {}
    client = Client(main_cf(level, certificates))
    async with listening(peers) as ports:
        for name, state in STATES.items():
            attempt = await client.attempt(f"[127.0.0.1]:{ports[name]}")
            if difference := wrong(attempt, peers[name], state.expected(level)):
                found[name] = difference
            if difference := wrong_log(attempt, level, state, ports[name]):
                found[f"{name}, log"] = difference
            # A password may be in what comes before TLS: none of it is said in the clear.
            if state.expected(level) is TLS:
                assert peers[name].links[0].clear == ["EHLO client.example", "STARTTLS"], name
    assert found == {}


@trio_test
async def test_s099_what_becomes_of_mail_that_has_waited_at_may(certificates: Pki) -> None:
    peers = {name: state.peer(certificates) for name, state in STATES.items()}
    found = {}
    client = Client(main_cf("may", certificates))
    async with listening(peers) as ports:
        for name, state in STATES.items():
            attempt = await client.attempt(f"[127.0.0.1]:{ports[name]}", age=AGED)
            if difference := wrong(attempt, peers[name], state.aged or state.may):
                found[name] = difference
    assert found == {}


@trio_test
async def test_s125_mail_that_has_waited_never_goes_in_the_clear_at_encrypt(
    certificates: Pki,
) -> None:
    peers = {name: state.peer(certificates) for name, state in STATES.items() if state.aged}
    assert peers
    client = Client(main_cf("encrypt", certificates))
    async with listening(peers) as ports:
        for name, peer in peers.items():
            attempt = await client.attempt(f"[127.0.0.1]:{ports[name]}", age=AGED)
            assert attempt.outcome.action is Action.DEFERRED, name
            assert len(peer.links) == 1, name
            assert peer.accepted == []


def wrong_log(attempt: Attempt, level: str, state: State, port: int) -> str:
    """What is wrong with the lines about TLS; empty: nothing."""
    if state.expected(level) is HANDSHAKE:
        return wrong_failure(attempt, state, port)
    lines = [line for line in attempt.log if "TLS connection established" in line]
    if level == "none" or not state.trust:
        return "\n".join(lines)
    end = state.expected(level)
    trust = state.trust
    # An end of the session that comes later says nothing about who the server is.
    verified = level in ("fingerprint", "verify", "secure")
    verified = verified and end is not UNVERIFIED
    head = ESTABLISHED.format("Verified" if verified else trust, PEER, port, state.version)
    if len(lines) == 1 and lines[0].startswith(head):
        return ""
    return f"{head!r} is not the beginning of {lines}"


def wrong_failure(attempt: Attempt, state: State, port: int) -> str:
    """What is wrong with the line about a handshake that failed; empty: nothing.

    Postfix gives a number where it is not the line that failed; ours says what OpenSSL says.
    """
    head = f"SSL_connect error to {PEER}:{port}: "
    cut = state.broken is not None and state.broken.harm in (Harm.CUT, Harm.HALF)
    tail = "lost connection" if cut else ""
    (line,) = attempt.log
    return "" if line.startswith(head) and line.endswith(tail) and line != head else line
