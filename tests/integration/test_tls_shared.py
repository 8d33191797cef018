"""One TLS connection to a real Postfix, used by several processes one after another.

A worker of a node makes it and lends it by way of the connection cache; `postrio deliver`, another
process with the same configuration, takes it, and gives it back. Postfix's log says how many TLS
sessions there were; what it received, that nothing was lost or came twice.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from tests.integration.node import Node, run_command
from tests.integration.pki import HOST, Pki

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd")

PATIENT = "60s"
LIMIT = 40.0  # seconds for Postfix to deliver what it took
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
SUITES = {
    "TLS 1.3": {"smtpd_tls_mandatory_protocols": ">=TLSv1.3"},
    "TLS 1.2": {"smtpd_tls_mandatory_protocols": "<=TLSv1.2"},
    "TLS 1.2, CBC": {
        "smtpd_tls_mandatory_protocols": "<=TLSv1.2",
        "tls_medium_cipherlist": "ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0",
    },
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module. Postfix opens files as root."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def servers(certificates: Pki) -> Iterator[Callable[[str], PostfixInstance]]:
    """A Postfix with each kind of suite, its maildir empty; each is started once."""
    running: dict[str, PostfixInstance] = {}
    with ExitStack() as stack:

        def server(suite: str) -> PostfixInstance:
            if suite not in running:
                main_cf = {
                    "smtpd_tls_security_level": "encrypt",
                    "smtpd_tls_chain_files": str(certificates.leaf("good").joined),
                    "smtpd_tls_loglevel": "1",
                    "smtpd_tls_received_header": "yes",
                }
                instance = PostfixInstance(main_cf=main_cf | SUITES[suite])
                running[suite] = stack.enter_context(instance)
            shutil.rmtree(running[suite].maildir / "all", ignore_errors=True)
            return running[suite]

        yield server


@pytest.fixture
def postfix(servers: Callable[[str], PostfixInstance]) -> PostfixInstance:
    """The one with TLS 1.3."""
    return servers("TLS 1.3")


class Sharing:
    """A node that keeps its sessions, and other processes that find them."""

    def __init__(self, node: Node, postfix: PostfixInstance) -> None:
        self._node = node
        self._postfix = postfix
        self._sent = 0
        self._before = len(postfix.log())

    @staticmethod
    def parameters(postfix: PostfixInstance, certificates: Pki) -> dict[str, str]:
        """Of the node."""
        return {
            "default_transport": f"smtp:[127.0.0.1]:{postfix.port}",
            "smtp_connection_cache_destinations": "static:all",
            "smtp_connection_cache_time_limit": PATIENT,
            "smtp_connection_reuse_time_limit": PATIENT,
            "connection_cache_ttl_limit": PATIENT,
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": str(certificates.ca_file()),
            "smtp_tls_verify_cert_match": HOST,
            "postrio_worker_processes": "1",
        }

    async def by_the_node(self) -> str:
        """One message through the queue; the line about it."""
        await self._node.send(MESSAGE, f"u{self._sent}@to.example")
        self._sent += 1
        return (await self._node.wait_for("status=sent", self._sent))[-1]

    async def by_another_process(self, *options: str) -> dict[str, object]:
        """One message by `postrio deliver`; what it says about it."""
        done = await run_command(
            *("deliver", "--json", "-c", str(self._node.main_cf), "--sender", ""),
            *("--nexthop", f"[127.0.0.1]:{self._postfix.port}"),
            *("--cache-socket", str(self._node.queue_directory / "private" / "scache")),
            *("--recipient", "other@to.example", *options),
            stdin=MESSAGE,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    @property
    def tls_sessions(self) -> int:
        """How many Postfix has seen."""
        log = self._postfix.log()[self._before :]
        return len(re.findall("TLS connection established from", log))

    async def received(self, count: int) -> list[bytes]:
        """So many messages, and no more."""
        messages = await trio.to_thread.run_sync(self._postfix.wait_until_received, count, LIMIT)
        assert len(messages) == count
        return messages


@pytest.mark.parametrize("suite", SUITES)
@trio_test
async def test_a_tls_session_that_a_worker_made_serves_other_processes(
    servers: Callable[[str], PostfixInstance], certificates: Pki, tmp_path: Path, suite: str
) -> None:
    postfix = servers(suite)
    async with Node(tmp_path, Sharing.parameters(postfix, certificates)) as node:
        sharing = Sharing(node, postfix)
        assert "conn_use" not in await sharing.by_the_node()
        for use in (2, 3):
            found = await sharing.by_another_process()
            assert (found["conn_use"], found["tls"]) == (use, "verify")
        assert "conn_use=4" in await sharing.by_the_node()
        found = await sharing.by_another_process()
        assert found["conn_use"] == 5
        messages = await sharing.received(5)
        assert all(b"(using TLSv1." in message for message in messages)
        assert sharing.tls_sessions == 1


@trio_test
async def test_it_serves_nobody_who_asks_for_something_else(
    postfix: PostfixInstance, certificates: Pki, tmp_path: Path
) -> None:
    options = [
        "smtp_tls_verify_cert_match=good.example",
        "smtp_tls_security_level=encrypt",
        "smtp_tls_mandatory_exclude_ciphers=aNULL, DES",
        "smtp_tls_scert_verifydepth=5",
        "smtp_tls_servername=sni.example",
    ]
    async with Node(tmp_path, Sharing.parameters(postfix, certificates)) as node:
        sharing = Sharing(node, postfix)
        await sharing.by_the_node()
        for option in options:
            found = await sharing.by_another_process("-o", option)
            assert found["conn_use"] == 1, option
        assert (await sharing.by_another_process())["conn_use"] == 2
        await sharing.received(2 + len(options))
        assert sharing.tls_sessions == 1 + len(options)


@trio_test
async def test_a_connection_whose_maker_is_gone_is_nobody_s_failure(
    postfix: PostfixInstance, certificates: Pki, tmp_path: Path
) -> None:
    async with Node(tmp_path, Sharing.parameters(postfix, certificates)) as node:
        sharing = Sharing(node, postfix)
        await sharing.by_the_node()
        (pid,) = node.worker_pids()
        os.kill(pid, signal.SIGKILL)
        found = await sharing.by_another_process()
        assert (found["status"], found["conn_use"]) == ("sent", 1)
        await sharing.received(2)
