"""The delay line: in order, late, bounded. On a virtual clock."""

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, trio_test

from bench.sink.delay_line import LIMIT, DelayLine

HUNG = 10_000.0  # virtual seconds: whoever waits so long waits for ever
DELAY = 2.0


@trio_test
async def test_octets_leave_in_order_each_after_the_delay(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    line = DelayLine(near, DELAY)
    with trio.fail_after(HUNG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            for octets in (b"one", b"two", b"three"):
                await line.send_all(octets)
                await trio.sleep(0.5)
            await line.aclose()
            arrived = [(bytes(await far.receive_some()), trio.current_time()) for _ in range(3)]
    assert arrived == [(b"one", 2.0), (b"two", 2.5), (b"three", 3.0)]


@trio_test
async def test_what_the_peer_says_comes_without_delay(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    await far.send_all(b"hello")
    assert await DelayLine(near, DELAY).receive_some(4) == b"hell"
    assert trio.current_time() == 0.0


@trio_test
async def test_a_full_line_takes_more_when_something_left(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    line = DelayLine(near, DELAY)
    with trio.fail_after(HUNG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            await line.send_all(b"a" * (LIMIT - 1))
            await line.send_all(b"bb")  # there is room for one, and one send may go over
            assert trio.current_time() == 0.0
            await line.send_all(b"c")
            assert trio.current_time() == DELAY
            await line.aclose()
            seen = b""
            while len(seen) < LIMIT + 2:
                seen += await far.receive_some()
            assert trio.current_time() == 2 * DELAY
    assert seen == b"a" * (LIMIT - 1) + b"bbc"


@trio_test
async def test_a_peer_that_is_gone_breaks_the_line_and_frees_who_waits(
    autojump_clock: MockClock,
) -> None:
    near, far = memory_stream_pair()
    line = DelayLine(near, DELAY)
    with trio.fail_after(HUNG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            await line.send_all(b"a" * LIMIT)
            await far.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await line.send_all(b"b")
            assert trio.current_time() == DELAY


@trio_test
async def test_a_closed_line_takes_nothing_more(autojump_clock: MockClock) -> None:
    near, _far = memory_stream_pair()
    line = DelayLine(near, DELAY)
    await line.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await line.send_all(b"a")
