"""A session is good for one thing at a time, and after any failure for nothing."""

import socket

import pytest
import trio
from trio.testing import MockClock, trio_test

from tests.worker.memory_line import MemoryStream, memory_stream_pair
from worker.delivery.session import Session
from worker.delivery.settings import DeliverySettings
from worker.errors import SessionError, SiteError
from worker.network.address import Endpoint

ENDPOINT = Endpoint(host="mx.example", address="192.0.2.1", port=25, family=socket.AF_INET)


def a_session() -> tuple[Session, MemoryStream]:
    ours, theirs = memory_stream_pair(4096)
    return Session(ENDPOINT, ours, DeliverySettings()), theirs


async def listen(session: Session) -> None:
    with session.conversation() as talk:
        talk.phase("listening", 10.0)
        await talk.reply()


@trio_test
async def test_a_timeout_ends_a_session(autojump_clock: MockClock) -> None:
    session, server = a_session()
    with pytest.raises(SessionError) as caught:
        await listen(session)
    assert (
        caught.value.reason == "conversation with mx.example[192.0.2.1] timed out while listening"
    )
    assert not session.reusable
    await session.quit()  # says nothing
    assert await server.receive_some() == b""


@trio_test
async def test_a_lost_connection_ends_a_session(autojump_clock: MockClock) -> None:
    session, server = a_session()
    await server.aclose()
    with pytest.raises(SessionError) as caught:
        await listen(session)
    assert caught.value.reason == "lost connection with mx.example[192.0.2.1] while listening"
    assert not session.reusable
    await session.aclose()


@trio_test
async def test_an_endless_reply_ends_a_session(autojump_clock: MockClock) -> None:
    session, server = a_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"x" * 70_000)
        with pytest.raises(SessionError):
            await listen(session)
        nursery.cancel_scope.cancel()
    assert not session.reusable
    await session.aclose()


@trio_test
async def test_a_cancellation_ends_a_session(autojump_clock: MockClock) -> None:
    session, server = a_session()
    with trio.move_on_after(5.0) as scope:
        await listen(session)
    assert scope.cancelled_caught
    assert not session.reusable
    await session.quit()  # says nothing: a late reply would answer it
    assert await server.receive_some() == b""


@trio_test
async def test_a_refusal_leaves_a_session_sound_enough_for_quit(autojump_clock: MockClock) -> None:
    session, _ = a_session()

    def refuse() -> None:
        with session.conversation():
            raise SiteError("4.0.0", "no")

    with pytest.raises(SiteError):
        refuse()
    assert not session.broken
    await session.aclose()


@trio_test
async def test_a_deadline_follows_the_phase_that_is_under_way(autojump_clock: MockClock) -> None:
    session, server = a_session()

    async def talk_twice() -> None:
        with session.conversation() as talk:
            talk.phase("speaking", 100.0)
            await talk.send(b"hello")
            talk.phase("listening", 10.0)
            await talk.reply()

    assert session.reusable
    with pytest.raises(SessionError):
        await talk_twice()
    assert trio.current_time() == 10.0
    await session.aclose()
    await server.aclose()
