"""Postfix's own smtp(8) at the servers of the matrix: the table agrees, or says where it does not.

So the table of `test_tls_matrix.py` is no opinion of ours. One Postfix, a transport for each level,
all servers at once.
"""

import re
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from tests.integration.pki import HOST, Pki
from tests.integration.test_tls_matrix import (
    CLEAR,
    LEVELS,
    PEER,
    STATES,
    TLS,
    End,
    State,
)
from tests.integration.tls_peers import listening
from tests.worker.peer import Phase

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd", "openssl")

LIMIT = 60.0  # seconds for Postfix to try every server once
REFUSED = "TLS is required, but host {peer} refused to start TLS: "


def at_postfix(name: str, state: State, level: str) -> End:
    """What Postfix 3.7 does; where that is not what the table says, the reason is there."""
    end = state.expected(level)
    if level == "none":
        return end
    mandatory = level != "may"
    reply = state.script.get(Phase.STARTTLS)
    match name:
        case "refused-454" | "refused-554" if mandatory:
            assert isinstance(reply, str)
            action = "deferred" if reply.startswith("4") else "bounced"
            return End(f"{reply.split()[1]} {action} ({REFUSED}{reply})")
        case "refused-421":
            return End(f"4.3.2 deferred ({REFUSED}{reply})") if mandatory else CLEAR
        case "injected":
            return TLS
        case "tls-1.1" if level == "encrypt":
            return TLS
        case "weak-key":
            return TLS
    return end


def trust_at_postfix(name: str, state: State) -> str:
    """The word in its log, where nobody in particular is asked for."""
    # It is heard of a weak certificate only where it counts.
    return "Trusted" if name in ("weak-key", "weak-digest") else state.trust


@dataclass(frozen=True, slots=True)
class Cell:
    """One server at one level."""

    name: str
    level: str

    @property
    def key(self) -> str:
        """Its name for Postfix; a digest belongs to the transport."""
        return f"{self.name.replace('.', '')}-{self.level}"

    @property
    def transport(self) -> str:
        """In master.cf."""
        if self.level == "fingerprint":
            return f"fingerprint-{STATES[self.name].leaf}"
        return self.level


CELLS = [Cell(name, level) for name in STATES for level in LEVELS]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module. Postfix opens files as root."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def postfix(certificates: Pki) -> Iterator[PostfixInstance]:
    """A Postfix that relays: not started, because it must know the servers' ports."""
    instance = PostfixInstance(
        main_cf={
            "virtual_mailbox_domains": "",
            "smtp_tls_CAfile": str(certificates.ca_file()),
            "smtp_tls_loglevel": "1",
            "smtp_tls_verify_cert_match": HOST,
            "smtp_tls_secure_cert_match": HOST,
            "smtp_tls_fingerprint_digest": "sha256",
            "smtp_connection_cache_on_demand": "no",
            "notify_classes": "",
            "default_process_limit": "50",
        },
        master_cf=[
            f"{transport} unix - - n - - smtp -o smtp_tls_security_level={level}"
            + (f" -o smtp_tls_fingerprint_cert_match={digest}" if digest else "")
            for transport, level, digest in transports(certificates)
        ],
    )
    try:
        yield instance
    finally:
        instance.stop()
        instance.remove()


def transports(certificates: Pki) -> Iterator[tuple[str, str, str]]:
    """Name, level, digest."""
    for level in LEVELS:
        if level != "fingerprint":
            yield level, level, ""
    for leaf in sorted({state.leaf for state in STATES.values()}):
        yield f"fingerprint-{leaf}", "fingerprint", certificates.leaf(leaf).digest()


def submit(port: int, cells: list[Cell]) -> None:
    """A message for each."""
    with smtplib.SMTP("127.0.0.1", port) as client:
        for cell in cells:
            client.sendmail("", [f"{cell.key}@{cell.key}.test"], b"Subject: x\r\n\r\nx\r\n")


@trio_test
async def test_postfix_does_at_the_same_servers_what_the_table_says(
    postfix: PostfixInstance, certificates: Pki
) -> None:
    peers = {cell.key: STATES[cell.name].peer(certificates) for cell in CELLS}
    found = {}
    async with listening(peers) as ports:
        table = postfix.directory / "transport"
        lines = [f"{c.key}.test {c.transport}:[127.0.0.1]:{ports[c.key]}\n" for c in CELLS]
        table.write_text("".join(lines))
        postfix.configure({"transport_maps": f"texthash:{table}"})
        await trio.to_thread.run_sync(postfix.start)
        await trio.to_thread.run_sync(submit, postfix.port, CELLS)
        with trio.fail_after(LIMIT):
            while postfix.log().count(" status=") < len(CELLS):  # noqa: ASYNC110  # nobody tells us
                await trio.sleep(0.1)
        log = postfix.log()
        await trio.to_thread.run_sync(postfix.stop)
        for cell in CELLS:
            state = STATES[cell.name]
            end = at_postfix(cell.name, state, cell.level)
            line = re.search(f"to=<{cell.key}@.* dsn=(.*), status=(.*)", log)
            assert line is not None
            taken = [message.encrypted for message in peers[cell.key].accepted]
            said = (f"{line[1]} {line[2]}", taken)
            wanted = (
                end.status.format(peer=PEER),
                [] if end.encrypted is None else [end.encrypted],
            )
            if said != wanted:
                found[cell.key] = said
            if cell.level in ("may", "encrypt") and state.trust and end is not CLEAR:
                words = re.findall(
                    f"(\\w+) TLS connection established to .*:{ports[cell.key]}:", log
                )
                if words != [trust_at_postfix(cell.name, state)]:
                    found[f"{cell.key}, log"] = (str(words), [])
    assert found == {}
