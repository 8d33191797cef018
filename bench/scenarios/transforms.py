"""What it costs to change a content on its way out: conversion to quoted-printable, header checks.

Two pairs, each of the delivery's own transform and the library call it is made of, in this process
and from memory: an 8-bit message for a server without 8BITMIME beside quopri, which encodes the
same octets at one go; and header fields for which a `regexp:` table has nothing, so that all its
rules are looked at, beside a loop over the same expressions. It is about CPU: nothing here waits.
"""

import quopri
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from bench.engine_loops import bench_config, bench_request
from bench.harness.scenario import Figure, LoadError, Scenario, Target, Turn
from protocol.capabilities import Capabilities
from protocol.request import Protocol
from worker.content import BLOCK_SIZE
from worker.delivery.content_settings import ContentSettings
from worker.delivery.content_transform import make_transform

CONVERSION: Final = "postrio, conversion"
QUOPRI: Final = "quopri"
CHECKS: Final = "postrio, header checks"
LOOP: Final = "loop over re"

HEAD: Final = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
LINE: Final = "Grüße: der schnelle braune Fuchs springt über den faulen Hund.\r\n".encode()
MILLI: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is changed, and what is looked for."""

    size: int = 10_000_000  # octets of the message that is converted
    rules: int = 1_000  # of the table of checks
    fields: int = field(default=200, metadata={"most": 10_000})  # of the header that is checked


QUICK: Final = Load(size=500_000, rules=100, fields=20)


def scenario(load: Load) -> Scenario:
    """Our transforms, and what they are made of."""
    contenders: dict[str, Turn] = {
        name: partial(turn, make, load)
        for name, make in {
            CONVERSION: conversion,
            QUOPRI: by_quopri,
            CHECKS: checks,
            LOOP: by_loop,
        }.items()
    }
    return Scenario(
        name="transforms",
        about=f"{load.size / 1e6:g} MB of 8-bit text become quoted-printable, and {load.fields}"
        f" header fields are looked up in {load.rules} rules",
        figures=[Figure(name="cpu", unit="ms of CPU a message", more_is_better=False)],
        contenders=contenders,
        targets=[
            # Half of quopri's rate; three times the loop's time.
            Target(figure="cpu", contender=CONVERSION, against=QUOPRI, at_most=2.0),
            Target(figure="cpu", contender=CHECKS, against=LOOP, at_most=3.0),
        ],
        base=CONVERSION,
    )


def turn(make: Callable[[Load], Callable[[], bytes]], load: Load) -> Mapping[str, float]:
    """One turn: what is needed is made first, and does not count. Raises LoadError."""
    work = make(load)
    began = time.process_time()
    out = work()
    cpu = time.process_time() - began
    if not out:
        raise LoadError("nothing came of the message")
    return {"cpu": cpu * MILLI}


def conversion(load: Load) -> Callable[[], bytes]:
    """The transform of a delivery to a server without 8BITMIME."""
    return partial(transformed, ContentSettings(), Capabilities(), HEAD + body(load))


def by_quopri(load: Load) -> Callable[[], bytes]:
    """The standard library's encoder, the whole body at once."""
    return partial(quopri.encodestring, body(load))


def body(load: Load) -> bytes:
    """8-bit text in lines as people write them."""
    return LINE * (load.size // len(LINE) + 1)


def checks(load: Load) -> Callable[[], bytes]:
    """The transform of a delivery with a table of header checks."""
    rules = ", ".join(f"{{/{text}/ IGNORE}}" for text in expressions(load))
    config = bench_config({"smtp_header_checks": f"regexp:{{{rules}}}"})
    settings = ContentSettings.from_config(config, Protocol.SMTP)
    message = b"".join(b"%s\r\n" % line for line in header(load)) + b"\r\nbody\r\n"
    return partial(transformed, settings, Capabilities(eightbitmime=True), message)


def by_loop(load: Load) -> Callable[[], bytes]:
    """Each expression, compiled, asked about each field."""
    # As in regexp tables, where case does not count. All are anchored, so match() is the fastest.
    flags = re.IGNORECASE | re.DOTALL | re.ASCII
    matches = [re.compile(text, flags).match for text in expressions(load)]
    lines = [line.decode() for line in header(load)]

    def look() -> bytes:
        kept = [line for line in lines if not any(match(line) for match in matches)]
        return "".join(kept).encode()

    return look


def expressions(load: Load) -> list[str]:
    """What such tables hold: a field's name, and something in its text."""
    return [rf"^X-Spam-{number}: .*wanted[0-9]" for number in range(load.rules)]


def header(load: Load) -> list[bytes]:
    """Fields that none of the expressions matches, without line ends."""
    return [b"X-Spam-%d: nothing of the sort, whatever it may be" % n for n in range(load.fields)]


def transformed(settings: ContentSettings, announced: Capabilities, message: bytes) -> bytes:
    """What a delivery makes of the message, which comes in blocks as from a file."""
    request = replace(bench_request(25, len(message)), encoding="8bit")

    async def run() -> bytes:
        transform = make_transform(settings, request, announced, lambda _: None)
        assert transform is not None
        blocks = range(0, len(message), BLOCK_SIZE)
        out = [await transform.feed(message[at : at + BLOCK_SIZE]) for at in blocks]
        return b"".join(out) + await transform.finish()

    return trio.run(run)
