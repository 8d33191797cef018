"""Sessions inside TLS, in a process of their own, and what a message costs in them.

Answers for what each contender does for one message:

- in the clear, reused TLS: `deliver()` in slots that know their next request, as in a worker.
- new connections: the same, without reuse: connect, EHLO, STARTTLS, EHLO, one message, QUIT. The
  engine resumes TLS sessions as it does by default; with full handshakes, it may not.
- aiosmtplib: the same, with the standard library's ssl, which verifies nothing. (Level encrypt asks
  for no proof either; the engine looks at the certificate all the same, for the log.)
- shared: each message takes a TLS connection that another process has made and holds from the
  connection cache, and gives it back: `share` here, `lend` in the process that made them.

Run by `scenarios/tls.py`, as `python -m bench.tls_loops NAME PORT COUNT SESSIONS SIZE [CACHE]`;
prints JSON, and `lend` a line when all are lent.
"""

import asyncio
import json
import random
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import trio

from bench.engine_loops import (
    HOST,
    RECIPIENT,
    SENDER,
    Loop,
    LoopError,
    bench_config,
    bench_request,
    deliver_all,
)
from bench.load import message
from protocol.outcome import Action
from protocol.request import RequestFlags
from worker.content import InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.environment import Environment
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment
from worker.tls.holder import Holder

CLEAR: Final = "postrio, in the clear"
REUSED: Final = "postrio, reused TLS"
SHARED: Final = "postrio, shared TLS"
NEW: Final = "postrio, new connections"
FULL: Final = "postrio, full handshakes"
AIOSMTPLIB: Final = "aiosmtplib, new connections"
LENT: Final = "lent"  # what lend() prints

_TLS: Final = {"smtp_tls_security_level": "encrypt"}
_NEW: Final = {**_TLS, "smtp_connection_cache_on_demand": "no"}
CACHED: Final = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
PARAMETERS: Final[Mapping[str, Mapping[str, str]]] = {
    CLEAR: {"smtp_tls_security_level": "none"},
    REUSED: _TLS,
    NEW: _NEW,
    FULL: {**_NEW, "smtp_tls_session_cache_timeout": "0"},
}
# The second process takes a while to start.
SHARING: Final = MappingProxyType({**_TLS, "smtp_connection_cache_time_limit": "100s"})


def postrio(name: str, port: int, count: int, sessions: int, content: bytes) -> None:
    """Our delivery engine under PARAMETERS[name]."""
    make = partial(InlineContent, content)
    trio.run(deliver_all, port, count, sessions, len(content), make, PARAMETERS[name])


def aiosmtplib(port: int, count: int, sessions: int, content: bytes) -> None:
    """The asyncio client of that name; a connection for each message."""
    from aiosmtplib import SMTP  # of the tests' dependencies: not everybody has it

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    numbers = iter(range(count))

    async def serve() -> None:
        for _ in numbers:
            async with SMTP(
                hostname=HOST, port=port, use_tls=False, start_tls=True, tls_context=context
            ) as client:
                await client.sendmail(SENDER, [RECIPIENT], content)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(sessions):
                group.create_task(serve())

    asyncio.run(run())


# --- sharing -------------------------------------------------------------------------------------


def lend(port: int, sessions: int, content: bytes, cache: Path) -> None:
    """Make connections, deliver one message on each, lend them, and hold them until input ends."""

    async def work(environment: Environment) -> None:
        await _deliver_shared(environment, port, sessions, sessions, content)
        sys.stdout.write(f"{LENT}\n")
        sys.stdout.flush()
        await trio.lowlevel.wait_readable(sys.stdin)

    trio.run(_with_holder, cache, work)


def share(port: int, count: int, sessions: int, content: bytes, cache: Path) -> None:
    """Deliver over what the cache has, as many messages at a time as there are sessions."""

    async def work(environment: Environment) -> None:
        await _deliver_shared(environment, port, count, sessions, content)

    trio.run(_with_holder, cache, work)


async def _with_holder(cache: Path, work: Callable[[Environment], Awaitable[None]]) -> None:
    """`work`, with what a worker process has around it."""

    def emit(_: object) -> None:
        """There is no log."""

    holder = Holder(emit)
    environment = make_environment(
        *(bench_config(SHARING), emit, time.time, random.Random()),
        cache_socket=cache,
        holder=holder,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(holder.run)
        await work(environment)
        nursery.cancel_scope.cancel()


async def _deliver_shared(
    environment: Environment, port: int, count: int, sessions: int, content: bytes
) -> None:
    """Deliver `count` messages; each session comes from the cache, if it is there, and goes there.

    Raises LoopError.
    """
    request = replace(bench_request(port, len(content)), flags=CACHED)
    numbers = iter(range(count))

    async def one_by_one() -> None:
        for _ in numbers:
            slot = DeliverySlot()
            result = await deliver(request, InlineContent(content), environment, slot)
            await slot.release()
            if result.outcomes[0].action is not Action.SENT:
                raise LoopError(result.outcomes[0].reason)

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(one_by_one)


LOOPS: Final[Mapping[str, Loop]] = {
    **{name: partial(postrio, name) for name in PARAMETERS},
    AIOSMTPLIB: aiosmtplib,
}


def main() -> None:
    """Run one loop; print the seconds and the CPU seconds that it took, imports not counted."""
    name, port, count, sessions, size = sys.argv[1], *map(int, sys.argv[2:6])
    content = message(1, size)
    began, cpu = time.monotonic(), time.process_time()
    if name == "lend":
        lend(port, sessions, content, Path(sys.argv[6]))
    elif name == "share":
        share(port, count, sessions, content, Path(sys.argv[6]))
    else:
        LOOPS[name](port, count, sessions, content)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
