"""Slot streams: frames, descriptors that travel with them, and broken ones.

Real UNIX socket pairs, because descriptors travel over nothing else; nothing waits for time. Every
test counts the open descriptors of the process before and after.
"""

import os
import random
import socket
import struct
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from protocol.delivery_wire import encode_request, encode_result
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.outcome import Action, DeliveryResult, RecipientOutcome
from protocol.request import DeliveryRequest
from tests.descriptors import open_descriptors
from tests.worker.world import make_request
from worker.content import INLINE_LIMIT, Content, FileContent, InlineContent
from worker.pool.slots import PAYLOAD_LIMIT, FrameStream, RequestStream, StreamSlot
from worker.queue.slot import WorkerLost

REQUEST = make_request("a@example.com", "b@example.com")
LENGTHS = struct.Struct("!II")
DESCRIPTOR = 0xFFFF_FFFF


def a_result(request: DeliveryRequest) -> DeliveryResult:
    return DeliveryResult(
        outcomes=tuple(
            RecipientOutcome(recipient=r, action=Action.SENT, dsn="2.0.0", reason="250 ok")
            for r in request.recipients
        ),
        session_kept=True,
    )


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    """Whatever a test does, the process has as many open descriptors afterwards as before."""
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def stream_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    return trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def slot_pair() -> tuple[StreamSlot, RequestStream]:
    queue_end, worker_end = stream_pair()
    return StreamSlot(FrameStream(queue_end)), RequestStream(FrameStream(worker_end))


def content_file(directory: Path, octets: bytes) -> FileContent:
    path = directory / "content"
    path.write_bytes(octets)
    return FileContent(os.open(path, os.O_RDONLY))


async def read(content: Content) -> bytes:
    return b"".join([block async for block in content.blocks()])


# --- the way there and back ---------------------------------------------------------------------


@trio_test
async def test_requests_and_results_arrive_as_they_were_sent(tmp_path: Path) -> None:
    slot, stream = slot_pair()
    large = b"x" * (INLINE_LIMIT + 1)
    contents: list[tuple[Content, bytes]] = [
        (InlineContent(b""), b""),
        (InlineContent(b"y" * INLINE_LIMIT), b"y" * INLINE_LIMIT),
        (content_file(tmp_path, large), large),
    ]
    for sent, expected in contents:

        async def send(sent: Content = sent) -> None:
            await slot.send(REQUEST, sent)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = await stream.next_request()
        assert received is not None
        request, content = received
        assert request == REQUEST
        assert isinstance(content, FileContent) == (len(expected) > INLINE_LIMIT)
        assert await read(content) == expected
        content.close()
        assert stream.put_result(a_result(REQUEST))
        assert await slot.receive() == a_result(REQUEST)
    await slot.aclose()
    assert await stream.next_request() is None
    stream.close()


@trio_test
async def test_sending_closes_the_sender_s_descriptor(tmp_path: Path) -> None:
    slot, stream = slot_pair()
    content = content_file(tmp_path, b"octets")
    await slot.send(REQUEST, content)
    assert content.fd == -1
    received = await stream.next_request()
    assert received is not None
    received[1].close()
    stream.close()
    content = content_file(tmp_path, b"octets")
    with pytest.raises(WorkerLost):
        await slot.send(REQUEST, content)
    assert content.fd == -1
    await slot.aclose()


@trio_test
async def test_two_requests_under_way_keep_their_contents_apart(tmp_path: Path) -> None:
    slot, stream = slot_pair()
    await slot.send(REQUEST, InlineContent(b"first"))
    await slot.send(REQUEST, content_file(tmp_path, b"second"))
    await slot.send(REQUEST, InlineContent(b"third"))
    for expected in (b"first", b"second", b"third"):
        received = await stream.next_request()
        assert received is not None
        assert await read(received[1]) == expected
        received[1].close()
    await slot.aclose()
    stream.close()


@trio_test
async def test_frames_may_arrive_octet_by_octet() -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    payload = encode_request(REQUEST)
    frame = LENGTHS.pack(len(payload), 3) + payload + b"abc"

    async def drip() -> None:
        for octet in frame * 2:
            await near.send(bytes([octet]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        for _ in range(2):
            received = await stream.next_request()
            assert received == (REQUEST, InlineContent(b"abc"))
    near.close()
    stream.close()


@trio_test
async def test_a_request_that_must_not_be_sent_leaves_the_slot_usable() -> None:
    slot, stream = slot_pair()
    with pytest.raises(LocalProtocolError):
        await slot.send(make_request("a\n@example.com"), InlineContent(b""))
    await slot.send(REQUEST, InlineContent(b""))
    await stream.next_request()
    assert stream.put_result(a_result(REQUEST))
    assert await slot.receive() == a_result(REQUEST)
    await slot.aclose()
    stream.close()


# --- broken streams -----------------------------------------------------------------------------


@pytest.mark.parametrize("with_descriptor", [False, True])
@trio_test
async def test_a_stream_may_be_cut_at_any_octet(tmp_path: Path, with_descriptor: bool) -> None:
    payload = encode_request(REQUEST)
    length = DESCRIPTOR if with_descriptor else 3
    frame = LENGTHS.pack(len(payload), length) + payload + (b"" if with_descriptor else b"abc")
    file = content_file(tmp_path, b"octets")
    for cut in range(1, len(frame)):
        near, far = stream_pair()
        stream = RequestStream(FrameStream(far))
        head, rest = frame[: min(8, cut)], frame[8:cut]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fd]))]
        await near.sendmsg([head], rights if with_descriptor else [])
        if rest:
            await near.send(rest)
        near.close()
        with pytest.raises(RemoteProtocolError):
            await stream.next_request()
        stream.close()
    file.close()


@pytest.mark.parametrize(
    "lengths",
    [
        (PAYLOAD_LIMIT + 1, 0),
        (0xFFFF_FFFF, 0),
        (10, INLINE_LIMIT + 1),
        (10, DESCRIPTOR - 1),
        (PAYLOAD_LIMIT + 1, DESCRIPTOR),
    ],
)
@trio_test
async def test_lengths_out_of_bounds_end_the_stream_before_anything_is_read(
    lengths: tuple[int, int],
) -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    await near.send(LENGTHS.pack(*lengths))
    with pytest.raises(RemoteProtocolError, match="exceeds the limit"):
        await stream.next_request()
    near.close()
    stream.close()


@trio_test
async def test_a_frame_without_its_descriptor_ends_the_stream() -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    payload = encode_request(REQUEST)
    await near.send(LENGTHS.pack(len(payload), DESCRIPTOR) + payload)
    with pytest.raises(RemoteProtocolError, match="without its descriptor"):
        await stream.next_request()
    near.close()
    stream.close()


@pytest.mark.parametrize("at_once", [True, False])
@trio_test
async def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path, at_once: bool) -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    file = content_file(tmp_path, b"octets")
    payload = encode_request(REQUEST)
    frame = LENGTHS.pack(len(payload), 0) + payload
    many = array("i", [file.fd] * (50 if at_once else 1))

    async def send() -> None:
        for octets in [frame] if at_once else [bytes([octet]) for octet in frame]:
            await near.sendmsg([octets], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])

    errors: list[RemoteProtocolError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            await stream.next_request()
        except RemoteProtocolError as exc:
            errors.append(exc)
        nursery.cancel_scope.cancel()
    assert [str(error) for error in errors] == ["too many descriptors in a slot frame"]
    file.close()
    near.close()
    stream.close()


@trio_test
async def test_a_payload_that_is_no_request_ends_the_stream_and_closes_its_content(
    tmp_path: Path,
) -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    file = content_file(tmp_path, b"octets")
    frames = FrameStream(near)
    await frames.send(b"no request", file)
    with pytest.raises(RemoteProtocolError):
        await stream.next_request()
    file.close()
    frames.close()
    stream.close()


# --- looking ahead ------------------------------------------------------------------------------


@trio_test
async def test_a_request_that_is_there_is_seen_before_it_is_taken(tmp_path: Path) -> None:
    slot, stream = slot_pair()
    assert stream.upcoming() is None
    second = make_request("c@example.com")
    await slot.send(REQUEST, InlineContent(b"one"))
    await slot.send(second, content_file(tmp_path, b"two"))
    for expected, content in ((REQUEST, b"one"), (second, b"two")):
        seen = stream.upcoming()
        assert seen == expected
        assert stream.upcoming() is seen
        taken = await stream.next_request()
        assert taken is not None
        assert taken[0] is seen
        assert await read(taken[1]) == content
        taken[1].close()
    await slot.aclose()
    assert stream.upcoming() is None
    assert await stream.next_request() is None
    stream.close()


@trio_test
async def test_half_a_request_is_not_seen() -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    payload = encode_request(REQUEST)
    frame = LENGTHS.pack(len(payload), 3) + payload + b"abc"
    await near.send(frame[:-1])
    assert stream.upcoming() is None
    await near.send(frame[-1:])
    assert stream.upcoming() == REQUEST
    near.close()
    stream.close()


@pytest.mark.parametrize(
    "octets",
    [b"\xff" * 8, LENGTHS.pack(10, 0) + b"no request", LENGTHS.pack(0, DESCRIPTOR)],
    ids=["length", "payload", "descriptor"],
)
@trio_test
async def test_what_is_wrong_with_an_upcoming_request_is_said_when_it_is_taken(
    octets: bytes,
) -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    await near.send(octets)
    assert stream.upcoming() is None
    with pytest.raises(RemoteProtocolError):
        await stream.next_request()
    near.close()
    stream.close()


@trio_test
async def test_the_content_of_a_request_that_was_only_seen_is_closed(tmp_path: Path) -> None:
    slot, stream = slot_pair()
    await slot.send(REQUEST, content_file(tmp_path, b"octets"))
    assert stream.upcoming() == REQUEST
    stream.close()
    await slot.aclose()


@trio_test
async def test_random_octets_never_do_worse_than_end_the_stream() -> None:
    rng = random.Random(7)
    payload = encode_request(REQUEST)
    frame = bytearray(LENGTHS.pack(len(payload), 3) + payload + b"abc")
    for _ in range(300):
        octets = bytearray(frame)
        for _ in range(rng.randint(1, 3)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        near, far = stream_pair()
        stream = RequestStream(FrameStream(far))
        await near.send(bytes(octets))
        near.close()
        try:
            await stream.next_request()
        except RemoteProtocolError:
            pass
        finally:
            stream.close()


# --- the queue's end ----------------------------------------------------------------------------


@trio_test
async def test_requests_and_results_that_fill_both_sockets_pass_each_other() -> None:
    slot, stream = slot_pair()
    request = make_request(*(f"user{number}@example.com" for number in range(1000)))
    outcome = a_result(request).outcomes[0]
    reply = "4" * 400
    outcomes = tuple(
        replace(outcome, recipient=recipient, reason=reply, reply=reply)
        for recipient in request.recipients
    )
    result = DeliveryResult(outcomes=outcomes, session_kept=True)
    assert len(encode_result(result)) > 500_000

    async def queue() -> None:
        for _ in range(3):
            await slot.send(request, InlineContent(b"x" * INLINE_LIMIT))
        for _ in range(3):
            assert await slot.receive() == result

    async def worker() -> None:
        for number in range(3):
            received = await stream.next_request()
            assert received is not None
            assert received[0] == request
            if not number:
                await wait_all_tasks_blocked()  # the queue's second request fills the socket
            stream.put_result(result)
            await stream.flush()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue)
            nursery.start_soon(worker)
    await slot.aclose()
    stream.close()


@trio_test
async def test_what_is_wrong_while_a_result_is_sent_is_said_by_the_next_request() -> None:
    queue_end, worker_end = stream_pair()
    stream = RequestStream(FrameStream(worker_end))
    request = make_request(*(f"user{number}@example.com" for number in range(1000)))
    outcome = replace(a_result(request).outcomes[0], reason="2" * 400)
    outcomes = tuple(replace(outcome, recipient=one) for one in request.recipients)
    result = DeliveryResult(outcomes=outcomes, session_kept=True)
    with queue_end, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            assert not stream.put_result(result)
            nursery.start_soon(stream.flush)
            await wait_all_tasks_blocked()
            with socket.socket(fileno=os.dup(queue_end.fileno())) as plain:
                socket.send_fds(plain, [b"x"], [plain.fileno()] * 5)
            while len(await queue_end.recv(65536)) == 65536:
                pass
            nursery.cancel_scope.cancel()
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            await stream.next_request()
    stream.close()


@trio_test
async def test_a_worker_that_goes_away_is_lost() -> None:
    slot, stream = slot_pair()
    await slot.send(REQUEST, InlineContent(b""))
    stream.close()
    with pytest.raises(WorkerLost):
        await slot.receive()
    await slot.aclose()


@trio_test
async def test_results_sent_before_the_end_are_received_although_later_requests_were_refused() -> (
    None
):
    for close_first in (False, True):
        slot, stream = slot_pair()
        await slot.send(REQUEST, InlineContent(b"first"))
        assert await stream.next_request() is not None
        assert stream.put_result(a_result(REQUEST))
        if close_first:
            stream.close()
            with pytest.raises(WorkerLost):
                await slot.send(REQUEST, InlineContent(b"second"))
        else:  # it has arrived, and is never read: the end is a reset then
            await slot.send(REQUEST, InlineContent(b"second"))
            stream.close()
        assert await slot.receive() == a_result(REQUEST)
        with pytest.raises(WorkerLost):
            await slot.receive()
        await slot.aclose()


@pytest.mark.parametrize("payload", [b"", b"nonsense", encode_result(a_result(make_request()))])
@trio_test
async def test_a_result_that_makes_no_sense_does_not_mean_that_the_worker_is_gone(
    payload: bytes,
) -> None:
    near, far = stream_pair()
    slot, worker = StreamSlot(FrameStream(near)), FrameStream(far)
    await slot.send(REQUEST, InlineContent(b""))
    await worker.send(payload)
    with pytest.raises(RemoteProtocolError):
        await slot.receive()
    await slot.aclose()
    worker.close()


@trio_test
async def test_half_a_result_means_that_the_worker_is_gone() -> None:
    near, far = stream_pair()
    slot = StreamSlot(FrameStream(near))
    await slot.send(REQUEST, InlineContent(b""))
    assert await far.recv(65_536)  # else its end would be a reset
    await far.send(LENGTHS.pack(100, 0) + b"half")
    far.close()
    with pytest.raises(WorkerLost):
        await slot.receive()
    await slot.aclose()


@trio_test
async def test_an_answer_to_nothing_is_a_lost_worker(tmp_path: Path) -> None:
    near, far = stream_pair()
    slot, worker = StreamSlot(FrameStream(near)), FrameStream(far)
    file = content_file(tmp_path, b"octets")
    await worker.send(encode_result(a_result(REQUEST)), file)  # even a descriptor comes along
    with pytest.raises(WorkerLost, match="not asked"):
        await slot.receive()
    file.close()
    await slot.aclose()
    worker.close()


@trio_test
async def test_nobody_listening_is_a_lost_worker(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"no worker listens on worker\.0"):
        await StreamSlot.connect(tmp_path / "worker.0")


@trio_test
async def test_a_cancelled_receive_loses_no_descriptor(tmp_path: Path) -> None:
    near, far = stream_pair()
    stream = RequestStream(FrameStream(far))
    file = content_file(tmp_path, b"octets")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fd]))]
    await near.sendmsg([LENGTHS.pack(100, DESCRIPTOR)], rights)
    with trio.move_on_after(0.01):  # the rest of the frame never comes
        await stream.next_request()
    near.close()
    stream.close()
    file.close()
