"""Messages that go wrong in programs that handle them carelessly, and their canonical form.

`canonical` says independently of the product what has to arrive; tests compare to the octet. Below
it are the two ways through the product that every peer's tests take: deliver_corpus, queue_corpus.
"""

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from tests.integration.node import SENDER, Node
from worker.cli import invoke

HEADER: Final = b"From: a@from.example\r\nTo: b@to.example\r\nSubject: corpus\r\n\r\n"
LARGE: Final = 25_000_000  # octets

_LINE_END: Final = re.compile(rb"\r\n|\n|\r|\0")


def canonical(content: bytes) -> bytes:
    """CRLF for LF and CRLF, one space for any other CR and for NUL, a line end at the end."""
    text = _LINE_END.sub(lambda match: b"\r\n" if match[0][-1:] == b"\n" else b" ", content)
    return text if not text or text.endswith(b"\r\n") else text + b"\r\n"


def large_content() -> bytes:
    """25 MB of lines of many lengths, with everything in them that has to be changed or kept."""
    rng = random.Random(25)
    pieces = [
        *(b"." * count + b"dots\r\n" for count in range(4)),
        b"\r\n",
        b".\r\n",
        b"\xe4\xf6\xfc\xff" * 60 + b"\r\n",
        b"l" * 5_000 + b"\r\n",
        b"a line with an LF alone\n",
        b"a CR\rinside\r\n",
        b"a NUL\0inside\r\n",
        *(bytes(rng.randrange(32, 127) for _ in range(70)) + b"\r\n" for _ in range(40)),
    ]
    block = b"".join(rng.choice(pieces) for _ in range(5_000))
    # 4093 octets more each time: line ends fall on every place of the blocks that are read.
    filler = [b"x" * (number % 61) + b"\r\n" for number in range(LARGE // len(block) + 1)]
    return HEADER + b"".join(block + end for end in filler)[:LARGE]


CORPUS: Final[dict[str, bytes]] = {
    "plain": HEADER + b"One line.\r\nAnother one.\r\n",
    "eight-bit": HEADER + "Zürich\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
    "dots": HEADER + b".\r\n..\r\n...\r\n.x\r\n..x\r\nx.\r\n \r\n.\r\n\r\n.",
    "long-lines": HEADER + b"a" * 5_000 + b"\r\n." + b"b" * 5_000 + b"\r\n" + b"c" * 998 + b"\r\n",
    "no-final-newline": HEADER + b"the end is missing",
    "bare-cr": HEADER + b"one\rtwo\r\r\nthree\r\n\rfour\r",
    "bare-lf": HEADER + b"CRLF\r\nLF\nLF\n\nCRLF\r\n.\nLF before a dot\n.\n",
    "nul": HEADER + b"\0begins\r\nin\0side\r\nends\0\r\n\0",
    "smuggled-end": HEADER + b"text\n.\nMAIL FROM:<x@y.example>\n\r.\r\n\n.\r\n\r.\rtext\r\n",
    "empty-body": HEADER,
    "header-only": HEADER[:-2],
    "lf-only": HEADER.replace(b"\r\n", b"\n") + b"One line.\n.dot\n\nAnother one.\n",
    "long-header": b"X-Long: " + b"h" * 3_000 + b"\r\n\tfolded " + b"f" * 3_000 + b"\r\n" + HEADER,
    "from-line-in-body": HEADER + b"From here on\r\n>From there\r\n",
    "blank-lines": HEADER + b"\r\n\r\nx\r\n \r\n\t\r\n\r\n\r\n",
    "eight-bit-header": b"Subject: \xfcber\r\n" + HEADER + b"x\r\n",
    "no-header": b"This is no header\r\nand this is not one either.\r\n",
    "empty": b"",
}

RECIPIENT_DOMAIN: Final = "to.example"
# The corpus has lines that are longer than the default allows; they are to arrive whole.
UNBROKEN: Final = {"smtp_line_length_limit": "0", "lmtp_line_length_limit": "0"}
# It is larger than the default allows, too.
CORPUS_LIMITS: Final = {"message_size_limit": "40000000", **UNBROKEN}


def write_corpus(directory: Path) -> dict[str, Path]:
    """A file for each message of the corpus, and for the large one, by name."""
    files = {}
    for name, content in {**CORPUS, "large": large_content()}.items():
        files[name] = directory / f"{name}.eml"
        files[name].write_bytes(content)
    return files


def deliver_corpus(files: Mapping[str, Path], nexthop: str, protocol: str, *options: str) -> None:
    """Each message with `postrio deliver`, to its name at RECIPIENT_DOMAIN. All must be sent.

    In this process: the command's own, but for the start of an interpreter for each message.
    """
    for name, file in files.items():
        arguments = ["deliver", str(file), "--sender", SENDER, "--nexthop", nexthop]
        for parameter, value in UNBROKEN.items():
            arguments += ["-o", f"{parameter}={value}"]
        arguments += ["--recipient", f"{name}@{RECIPIENT_DOMAIN}", "--protocol", protocol]
        arguments += options
        assert invoke(arguments) == 0, name


async def queue_corpus(
    files: Mapping[str, Path],
    directory: Path,
    transport: str,
    main_cf: Mapping[str, str] | None = None,
) -> None:
    """Each message with `postrio send`, through one node; returns when all have left its queue."""
    async with Node(
        directory, {**CORPUS_LIMITS, "default_transport": transport, **(main_cf or {})}
    ) as node:
        for name, file in files.items():
            arguments = ["send", "-c", str(node.main_cf), "--message", str(file)]
            arguments += ["--sender", SENDER, f"{name}@{RECIPIENT_DOMAIN}"]
            assert await trio.to_thread.run_sync(invoke, arguments) == 0, name
        await node.wait_for(": removed$", len(files))
        assert node.count("status=sent") == len(files), node.tail()


def assert_arrived(
    arrived: Mapping[str, bytes], files: Mapping[str, Path], expected: Callable[[bytes], bytes]
) -> None:
    """What arrived, by name, is what `expected` makes of what was submitted; all of it."""
    assert sorted(arrived) == sorted(files)
    for name, file in files.items():
        wanted = expected(file.read_bytes())
        # No assertion on the octets themselves: pytest would work on 25 MB of differences.
        same = arrived[name] == wanted
        assert same, f"{name}: {difference(arrived[name], wanted)}"


def difference(found: bytes, wanted: bytes) -> str:
    """Where two contents part, for people."""
    pairs = enumerate(zip(found, wanted, strict=False))
    shorter = min(len(found), len(wanted))
    place = next((at for at, (left, right) in pairs if left != right), shorter)
    part = slice(max(0, place - 40), place + 40)
    return (
        f"from octet {place} on (of {len(found)} and {len(wanted)}) "
        f"{found[part]!r} instead of {wanted[part]!r}"
    )
