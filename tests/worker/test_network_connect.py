"""Connecting: one endpoint, the race among several, and that nothing is ever left open.

The race runs on a virtual clock with a scripted dialer; source addresses and UNIX sockets are tried
on loopback.
"""

import errno
import math
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.abc
from trio.testing import MockClock, trio_test

from protocol.request import Protocol
from tests.cancel_everywhere import cancel_everywhere
from worker.errors import ConnectError
from worker.network.address import Endpoint
from worker.network.connect import SocketDialer, connect, connect_any
from worker.network.endpoints import EndpointSettings
from worker.network.network import NetworkSettings, make_dialer
from worker.network.socket_stream import QuickStream
from worker.status.events import Event, Warned


@dataclass(frozen=True)
class Plan:
    """What dialling one address does: after `delay` seconds fail with `error`, or connect.

    `together`: connect in the same tick as all others of this kind, once all are dialled.
    """

    delay: float = 0.0
    error: OSError | None = None
    together: bool = False


class FakeStream(trio.abc.Stream):
    """A stream of which only its being open matters."""

    def __init__(self, dialer: "FakeDialer", address: str) -> None:
        self.address = address
        self._dialer = dialer
        dialer.opened.append(address)
        dialer.open.append(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        if self in self._dialer.open:
            self._dialer.open.remove(self)
        await trio.lowlevel.checkpoint()


@dataclass
class FakeDialer:
    """Dials by plan; knows what was dialled when, and what is still open."""

    plans: Mapping[str, Plan]
    dialled: list[tuple[float, str]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    open: list[FakeStream] = field(default_factory=list)
    all_dialled: trio.Event = field(default_factory=trio.Event)

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        self.dialled.append((trio.current_time(), endpoint.address))
        plan = self.plans[endpoint.address]
        await trio.sleep(plan.delay)
        if plan.error is not None:
            raise plan.error
        if plan.together:
            if len(self.dialled) == len(self.plans):
                self.all_dialled.set()
            await self.all_dialled.wait()
        return FakeStream(self, endpoint.address)


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused, in trio's many words")


def endpoint(address: str, port: int = 25) -> Endpoint:
    return Endpoint(host="mx.example", address=address, port=port, family=socket.AF_INET)


def endpoints(plans: Mapping[str, Plan]) -> list[Endpoint]:
    return [endpoint(address) for address in plans]


def reasons(error: ConnectError) -> list[str]:
    return [failure.reason for failure in error.failures]


# --- one endpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (REFUSED, "Connection refused"),
        (OSError(errno.EHOSTUNREACH, "x"), "No route to host"),
        (OSError(errno.ENETUNREACH, "x"), "Network is unreachable"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (OSError(), "OSError"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "Name not known"),
    ],
)
@trio_test
async def test_a_failed_connect_is_told_in_the_systems_words(error: OSError, text: str) -> None:
    dialer = FakeDialer({"192.0.2.1": Plan(error=error)})
    with pytest.raises(ConnectError) as caught:
        await connect(endpoint("192.0.2.1"), dialer, 30.0)
    assert caught.value.dsn == "4.4.1"
    assert caught.value.reason == f"connect to mx.example[192.0.2.1]:25: {text}"
    assert caught.value.endpoint == endpoint("192.0.2.1")
    assert caught.value.failures == ()


@trio_test
async def test_s044_a_silent_address_times_out(autojump_clock: MockClock) -> None:
    dialer = FakeDialer({"192.0.2.1": Plan(delay=math.inf)})
    with pytest.raises(ConnectError) as caught:
        await connect(endpoint("192.0.2.1"), dialer, 30.0)
    assert caught.value.reason == "connect to mx.example[192.0.2.1]:25: Connection timed out"
    assert trio.current_time() == 30.0


@trio_test
async def test_s044_no_limit_leaves_the_time_to_the_system(autojump_clock: MockClock) -> None:
    dialer = FakeDialer({"192.0.2.1": Plan(delay=100_000.0)})
    await connect(endpoint("192.0.2.1"), dialer, 0.0)
    assert trio.current_time() == 100_000.0


# --- the race --------------------------------------------------------------------------------


@trio_test
async def test_the_first_to_connect_wins_and_the_others_are_closed(
    autojump_clock: MockClock,
) -> None:
    plans = {"a": Plan(delay=10.0), "b": Plan(delay=1.0), "c": Plan(delay=9.0)}
    dialer = FakeDialer(plans)
    winner, stream = await connect_any(endpoints(plans), dialer, 2.0, 30.0)
    assert winner == endpoint("b")
    assert dialer.open == [stream]
    assert dialer.dialled == [(0.0, "a"), (2.0, "b")]
    assert trio.current_time() == 3.0


@trio_test
async def test_a_fast_first_address_has_no_rival(autojump_clock: MockClock) -> None:
    plans = {"a": Plan(delay=1.0), "b": Plan()}
    dialer = FakeDialer(plans)
    winner, _ = await connect_any(endpoints(plans), dialer, 2.0, 30.0)
    assert winner == endpoint("a")
    assert dialer.dialled == [(0.0, "a")]


@trio_test
async def test_a_failure_starts_the_next_address_at_once(autojump_clock: MockClock) -> None:
    plans = {"a": Plan(delay=0.5, error=REFUSED), "b": Plan(error=REFUSED), "c": Plan()}
    dialer = FakeDialer(plans)
    winner, _ = await connect_any(endpoints(plans), dialer, 2.0, 30.0)
    assert winner == endpoint("c")
    assert dialer.dialled == [(0.0, "a"), (0.5, "b"), (0.5, "c")]


@trio_test
async def test_an_infinite_stagger_means_one_after_another(autojump_clock: MockClock) -> None:
    plans = {"a": Plan(delay=math.inf), "b": Plan(delay=math.inf), "c": Plan(delay=1.0)}
    dialer = FakeDialer(plans)
    winner, _ = await connect_any(endpoints(plans), dialer, math.inf, 30.0)
    assert winner == endpoint("c")
    assert dialer.dialled == [(0.0, "a"), (30.0, "b"), (60.0, "c")]


@trio_test
async def test_when_all_fail_each_failure_is_told(autojump_clock: MockClock) -> None:
    plans = {"a": Plan(delay=math.inf), "b": Plan(error=REFUSED), "c": Plan(5.0, REFUSED)}
    with pytest.raises(ConnectError) as caught:
        await connect_any(endpoints(plans), FakeDialer(plans), 2.0, 30.0)
    assert reasons(caught.value) == [
        "connect to mx.example[b]:25: Connection refused",
        "connect to mx.example[c]:25: Connection refused",
        "connect to mx.example[a]:25: Connection timed out",
    ]
    assert {failure.endpoint for failure in caught.value.failures} == set(endpoints(plans))
    assert caught.value.reason == reasons(caught.value)[-1]
    assert caught.value.dsn == "4.4.1"
    assert trio.current_time() == 30.0


@trio_test
async def test_a_second_winner_of_the_same_moment_is_closed(autojump_clock: MockClock) -> None:
    plans = dict.fromkeys("abc", Plan(together=True))
    dialer = FakeDialer(plans)
    _, stream = await connect_any(endpoints(plans), dialer, 1.0, 30.0)
    assert len(dialer.opened) > 1
    assert dialer.open == [stream]


RACES = {
    "one wins": {"a": Plan(delay=10.0), "b": Plan(delay=1.0), "c": Plan()},
    "three win at once": dict.fromkeys("abc", Plan(together=True)),
    "a failure and a winner": {"a": Plan(error=REFUSED), "b": Plan(delay=1.0), "c": Plan(5.0)},
    "the only one": {"a": Plan()},
}


@pytest.mark.parametrize("plans", RACES.values(), ids=RACES.keys())
def test_cancelled_at_any_step_the_race_leaves_no_stream_open(plans: Mapping[str, Plan]) -> None:
    async def race(dialer: FakeDialer) -> None:
        _, stream = await connect_any(endpoints(plans), dialer, 1.0, 30.0)
        await trio.aclose_forcefully(stream)

    runs = 0
    for run in cancel_everywhere(lambda: FakeDialer(plans), race):
        assert not run.world.open, f"left open when cancelled at step {run.step}"
        runs += 1
    assert runs > 3


# --- real sockets ----------------------------------------------------------------------------


async def peer_of(dialer: SocketDialer, family: socket.AddressFamily, address: str) -> str:
    """Dial a listener on loopback; return the source address that it saw."""
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        target = Endpoint(host="h", address=address, port=listener.getsockname()[1], family=family)
        async with await connect(target, dialer, 5.0) as stream:
            assert isinstance(stream, QuickStream)
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not stream.socket.get_inheritable()
            accepted, peer = listener.accept()
            accepted.close()
            return str(peer[0])


@pytest.mark.parametrize(
    ("family", "address", "source"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.2"),
        (socket.AF_INET6, "::1", "::1"),
    ],
)
@trio_test
async def test_the_source_address_of_the_family_is_used(
    family: socket.AddressFamily, address: str, source: str
) -> None:
    dialer = SocketDialer(sources={family: source})
    assert await peer_of(dialer, family, address) == source


@trio_test
async def test_a_source_address_of_the_other_family_is_left_alone() -> None:
    dialer = SocketDialer(sources={socket.AF_INET6: "2001:db8::9"}, enforce_source=True)
    assert await peer_of(dialer, socket.AF_INET, "127.0.0.1") == "127.0.0.1"


@trio_test
async def test_s033_an_unusable_source_address_is_a_warning_and_the_kernel_chooses() -> None:
    events: list[Event] = []
    dialer = SocketDialer(sources={socket.AF_INET: "203.0.113.9"}, emit=events.append)
    assert await peer_of(dialer, socket.AF_INET, "127.0.0.1") == "127.0.0.1"
    assert events == [
        Warned("cannot bind to source address 203.0.113.9: Cannot assign requested address")
    ]


@trio_test
async def test_s033_an_unusable_source_address_can_be_a_failure() -> None:
    dialer = SocketDialer(sources={socket.AF_INET: "203.0.113.9"}, enforce_source=True)
    with pytest.raises(ConnectError) as caught:
        await connect(endpoint("127.0.0.1", 9), dialer, 5.0)
    assert caught.value.dsn == "4.4.0"
    assert caught.value.reason == (
        "connect to mx.example[127.0.0.1]:9: cannot bind to source address 203.0.113.9: "
        "Cannot assign requested address"
    )


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s193_of_lmtp_at_the_port_of_smtp_one_warning_is_given(protocol: Protocol) -> None:
    events: list[Event] = []
    settings = NetworkSettings(endpoints=EndpointSettings(protocol=protocol))
    dialer = make_dialer(settings, events.append)
    for port in (26, 25, 25):  # whether or not something listens there: the dialling goes on
        with suppress(OSError):
            await trio.aclose_forcefully(await dialer.dial(endpoint("127.0.0.1", port)))
    text = (
        "LMTP to mx.example[127.0.0.1]:25: LMTP must not be used at port 25, which is that of SMTP"
        " (RFC 2033 section 5)"
    )
    assert events == ([Warned(text)] if protocol is Protocol.LMTP else [])


@trio_test
async def test_s009_a_relative_socket_path_starts_at_the_socket_directory(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    target = Endpoint(host="h", address="private/lmtp", port=0, family=socket.AF_UNIX)
    dialer = SocketDialer(socket_directory=tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "private/lmtp"))
        listener.listen()
        async with await connect(target, dialer, 5.0):
            pass


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/no/such/socket", "No such file or directory"),
        ("/" + "x" * 200, "AF_UNIX path too long"),
    ],
)
@trio_test
async def test_a_socket_that_cannot_be_reached_is_told_by_its_path(path: str, text: str) -> None:
    target = Endpoint(host="h", address=path, port=0, family=socket.AF_UNIX)
    with pytest.raises(ConnectError) as caught:
        await connect(target, SocketDialer(), 5.0)
    assert caught.value.reason == f"connect to h[{path}]: {text}"


@trio_test
async def test_a_refused_connect_on_loopback_leaves_no_socket() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening
        port = unused.getsockname()[1]
        with pytest.raises(ConnectError) as caught:
            await connect(endpoint("127.0.0.1", port), SocketDialer(), 5.0)
    assert caught.value.reason == f"connect to mx.example[127.0.0.1]:{port}: Connection refused"


@trio_test
async def test_text_that_no_socket_can_take_is_a_failed_connect() -> None:
    target = Endpoint(host="h", address="/a\0b", port=0, family=socket.AF_UNIX)
    with pytest.raises(ConnectError) as caught:
        await connect(target, SocketDialer(), 5.0)
    assert caught.value.dsn == "4.4.1"
