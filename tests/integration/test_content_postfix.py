"""What Postfix's smtp(8) makes of messages, beside what we make of them, octet for octet.

Both deliver to the same server, which keeps what it gets. Left out of the comparison: the Received
field that Postfix adds as a relay, and where soft line breaks of quoted-printable text stand.
"""

import re
import smtplib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from bench.postfix_instance import PostfixInstance
from protocol.mime import Header, MimeParser, Place
from tests.integration.peers import find_program
from tests.integration.recording_server import RecordingServer
from worker.cli import invoke
from worker.config.tables import open_table

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd")

LIMIT = 40.0  # seconds for Postfix to deliver what it took
HEAD = b"From: a@from.example\r\nTo: b@to.example\r\nMIME-Version: 1.0\r\n"
LEAF = (
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    b"X-After: 1\r\n\r\nGr\xc3\xbc\xc3\x9fe = \t\r\nx \r\n.dot\r\n..\r\n"
)


def multipart(kind: bytes, *parts: bytes, encoding: bytes = b"8bit", name: bytes = b"B") -> bytes:
    """A multipart entity."""
    return (
        b"Content-Type: multipart/%s; boundary=%s\r\n" % (kind, name)
        + b"Content-Transfer-Encoding: %s\r\n\r\nprolog\r\n" % encoding
        + b"".join(b"--%s\r\n" % name + part for part in parts)
        + b"--%s--\r\nepilogue\r\n" % name
    )


def nested(depth: int) -> bytes:
    """A leaf in that many multiparts."""
    message = LEAF
    for level in range(depth):
        message = multipart(b"mixed", message, name=b"B%d" % level)
    return message


MESSAGES = {
    "leaf": LEAF,
    "binary": LEAF.replace(b"8bit", b"binary"),
    "seven": LEAF.replace(b"8bit", b"7bit"),
    "base64": LEAF.replace(b"8bit", b"base64"),
    "unknown": LEAF.replace(b"8bit", b"x-own"),
    "comment": LEAF.replace(b"8bit", b"(c (c)) 8BIT (d)"),
    "encoding-dot": LEAF.replace(b"8bit", b"8bit."),
    "encoding-slash": LEAF.replace(b"8bit", b"8bit/x"),
    "unlabelled": b"Subject: \xc3\xa4\r\n\r\nb\xc3\xb6dy\r\n",
    "twice": (
        b"Content-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\xc3\xb6\r\n"
    ),
    "twice-other": b"Content-Transfer-Encoding: 7bit\r\n" + LEAF,
    "mixed": multipart(b"mixed", LEAF, LEAF.replace(b"8bit", b"7bit"), LEAF),
    "digest": multipart(b"digest", b"\r\nSubject: x\r\n" + LEAF, b"\r\n" + LEAF),
    "deep": nested(20),
    "forwarded": (
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"Subject : h\xc3\xa4\r\n" + LEAF
    ),
    "global": (
        b"Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"Subject: h\xc3\xa4\r\n" + LEAF
    ),
    "global-unlabelled": b"Content-Type: message/global\r\n\r\nSubject: h\xc3\xa4\r\n" + LEAF,
    "digest-empty-type": multipart(b"digest", b"Content-Type:\r\n\r\nSubject: x\r\n" + LEAF),
    "forwarded-mixed": multipart(
        b"mixed",
        b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n"
        + multipart(b"alternative", LEAF, LEAF, name=b"IN"),
        LEAF,
    ),
    "not-closed": multipart(
        b"mixed", multipart(b"mixed", LEAF, name=b"IN").partition(b"--IN--")[0], LEAF
    ),
    "quoted-boundary": (
        b'Content-Type: (c) multipart / (x) mixed ; x=y ; boundary = (c) "B\\B\r\n c"\r\n'
        b"Content-Transfer-Encoding: 8bit\r\n\r\n--BB c\r\n"
        + LEAF
        + b"--BB cx\r\n"
        + LEAF
        + b"--BB c--x\r\n\xc3\xa4\r\n"
    ),
    "dashes": multipart(b"mixed", LEAF + b"--\r\n-- \r\n--X\r\n-\r\n--b\r\n", b"\r\n--\r\n"),
    "no-empty-line": multipart(
        b"mixed", b"Content-Transfer-Encoding: 8bit\r\nno field \xc3\xa4\r\nx\r\n"
    ),
    "header-only": b"Subject: \xc3\xa4\r\nContent-Transfer-Encoding: 8bit\r\n",
    "space-before-colon": b"Subject \t : x\r\nContent-transfer-ENCODING : 8bit\r\n\r\n\xc3\xa4\r\n",
    "folded": (
        b"Content-Type:\r\n multipart/mixed;\r\n\tboundary=\r\n B\r\n\r\n--B\r\n"
        + LEAF
        + b"--B--\r\n"
    ),
    "long-line": b"X-Long: "
    + b"a" * 1000
    + b"\r\n"
    + b"Content-Transfer-Encoding: 8bit\r\n\r\n"
    + b"\xc3\xbc" * 3000
    + b"\r\n",
    **{
        f"line-{length}": b"\r\n" + b"x" * length + b"\r\n." + b"y" * length + b"\r\nz\r\n"
        for length in (996, 997, 998, 999, 1994, 1995, 1996, 5000)
    },
}

CHECKED = {
    "actions": b"".join(b"X-%d: value %d\r\n" % (number, number) for number in range(12))
    + b"\r\nx\r\n",
    "folded-field": b"X-Fold: one\r\n two\r\n\tthree\r\nX-Next: 1\r\n\r\nx\r\n",
    "parts": multipart(
        b"mixed",
        b"X-1: value 1\r\n" + LEAF,
        b"Content-Type: message/rfc822\r\n\r\nX-1: value 1\r\n" + LEAF,
        b"Content-Type: message/global\r\n\r\nX-1: value 1\r\n" + LEAF,
    ),
    "body": b"\r\ndrop me\r\nold text\r\nmark\r\nwarn\r\nX-1: value 1\r\nlast\r\n",
    "long-body": b"\r\n" + b"drop" * 600 + b"\r\n" + b"a" * 2048 + b"old text\r\nx\r\n",
}

RULES = {
    "header": """\
/^X-1: (.*)$/ REPLACE X-One: new $1
/^X-2:/ PREPEND X-Before: 2
/^X-3:/ IGNORE
/^X-4:/ STRIP off
/^X-5:/ WARN of it
/^X-6:/ INFO on it
/^X-7:/ DUNNO
/^X-8:/ REJECT it
/^X-9:/ REPLACE no field
/^X-10:/ replace X-Ten: 10
!/^X-|^[A-W]/ IGNORE
if /^X-11/
/11$/ REPLACE X-Eleven: 11
endif
/one.*three/ REPLACE X-Unfolded: 1
""",
    "mime_header": "/^X-1:/ REPLACE X-Part: 1\n/charset=utf-8/ PREPEND X-Utf8: 1\n",
    "nested_header": "/^X-1:/ REPLACE X-Nested: 1\n",
    "body": """\
/^drop/ IGNORE
/^old (.*)$/ REPLACE new $1
/^mark/ PREPEND marked:
/^warn/ WARN it
/^X-1:/ REPLACE body of x
""",
}
GENERIC_TABLE = """\
full@from.example full@outside.example
user+ext@from.example ext@outside.example
user@from.example plain@outside.example
local bare@outside.example
@domain.example @other.example
@all.example one@outside.example
"quoted local"@from.example unquoted@outside.example
"""
SENDERS = {
    "g-full": "full@from.example",
    "g-case": "Full@FROM.example",
    "g-ext": "user+ext@from.example",
    "g-plain": "user+other@from.example",
    "g-local": "local@peer.example",
    "g-domain": "any+one@domain.example",
    "g-all": "any@all.example",
    "g-quoted": '"quoted local"@from.example',
    "g-none": "none@from.example",
}


@dataclass
class Told:
    """What a server was told by one client."""

    contents: dict[str, bytes] = field(default_factory=dict)
    mails: dict[str, str] = field(default_factory=dict)
    rcpts: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Both:
    """The same messages by Postfix and by us."""

    postfix: Told
    ours: Told
    log: str  # Postfix's


def tell_both(
    messages: Mapping[str, bytes],
    main_cf: Mapping[str, str],
    senders: Mapping[str, str] | None = None,
) -> Both:
    """Deliver each message to its name; `main_cf` in Postfix's words, files by @DIR@."""
    with tempfile.TemporaryDirectory(prefix="content-") as path:
        directory = Path(path)
        directory.chmod(0o755)
        for name, text in {**RULES, "generic": GENERIC_TABLE}.items():
            (directory / name).write_text(text)
        settings = {name: text.replace("@DIR@", str(directory)) for name, text in main_cf.items()}
        senders = senders or {}
        log = ""
        told = []
        for client in (by_postfix, by_us):
            with RecordingServer("PIPELINING", "SIZE 0") as server:
                log = client(messages, settings, senders, server.port, directory) or log
                told.append(Told(server.contents, server.mails, server.rcpts))
    postfix, ours = told
    return Both(postfix, ours, log)


def by_postfix(
    messages: Mapping[str, bytes],
    settings: Mapping[str, str],
    senders: Mapping[str, str],
    port: int,
    directory: Path,
) -> str:
    """By a Postfix of our own; its log."""
    relay = f"smtp:[127.0.0.1]:{port}"
    main_cf = {
        "default_transport": relay,
        "relay_transport": relay,
        "relay_domains": "static:all",
        "virtual_mailbox_domains": "",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
        **settings,
    }
    with PostfixInstance(main_cf=main_cf) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, timeout=20) as client:
            client.ehlo()
            for name, message in messages.items():
                # The text of a path goes to the wire as it is.
                code, said = client.docmd(
                    f"MAIL FROM:<{senders.get(name, 's@from.example')}> BODY=8BITMIME"
                )
                assert code == 250, said
                assert client.rcpt(f"{name}@to.example")[0] == 250
                assert client.data(message)[0] == 250
        postfix.wait_until_drained(LIMIT)
        return postfix.log()


def by_us(
    messages: Mapping[str, bytes],
    settings: Mapping[str, str],
    senders: Mapping[str, str],
    port: int,
    directory: Path,
) -> None:
    """By `postrio deliver`."""
    known = {**settings, "myhostname": "peer.example"}
    (directory / "main.cf").write_text(
        "".join(f"{name} = {value}\n" for name, value in known.items()) + "mydestination =\n"
    )
    for name, message in messages.items():
        file = directory / f"{name}.eml"
        file.write_bytes(message)
        arguments = ["deliver", "-c", str(directory / "main.cf"), str(file)]
        arguments += ["--sender", senders.get(name, "s@from.example")]
        arguments += ["--nexthop", f"[127.0.0.1]:{port}", "--recipient", f"{name}@to.example"]
        assert invoke(arguments) in (0, 1, 2, 69, 75), name


def without_relay(content: bytes) -> bytes:
    """Without Postfix's own Received field."""
    return re.sub(rb"\AReceived: .*\r\n(?:[ \t].*\r\n)*", b"", content)


def joined(content: bytes) -> bytes:
    """Without soft line breaks. binascii encodes a lone dot, too, which does no harm."""
    return re.sub(rb"(?m)^=2E\r$", b"..\r", content.replace(b"=\r\n", b""))


def assert_same(both: Both, names: Mapping[str, object]) -> None:
    """Each message was told the same."""
    for name in names:
        assert joined(both.ours.contents[name]) == joined(
            without_relay(both.postfix.contents[name])
        ), name


@pytest.fixture(scope="module")
def converted() -> Both:
    """The messages for a server without 8BITMIME."""
    return tell_both({name: HEAD + text for name, text in MESSAGES.items()}, {})


@pytest.mark.parametrize("name", MESSAGES)
def test_s071_messages_are_converted_as_by_postfix(converted: Both, name: str) -> None:
    assert_same(converted, {name: None})


def test_s077_no_size_is_announced_for_what_is_converted(converted: Both) -> None:
    assert converted.ours.mails["leaf"] == converted.postfix.mails["leaf"]
    assert "SIZE" not in converted.ours.mails["leaf"]


@pytest.fixture(scope="module")
def checked() -> Both:
    """Messages with all checks on."""
    parameters = {
        f"smtp_{name}_checks": f"regexp:@DIR@/{name}"
        for name in ("header", "mime_header", "nested_header", "body")
    }
    return tell_both({name: HEAD + text for name, text in CHECKED.items()}, parameters)


@pytest.mark.parametrize("name", CHECKED)
def test_s080_checks_do_what_postfix_does(checked: Both, name: str) -> None:
    assert_same(checked, {name: None})


@pytest.fixture(scope="module")
def generic() -> Both:
    """Messages from and to addresses of the generic table."""
    messages = {
        name: b"From: The Sender <%s>\r\nTo: b@to.example\r\nCc: one@from.example,\r\n"
        b"\t%s (comment)\r\nSubject: x\r\n\r\n%s\r\n" % ((sender.encode(),) * 3)
        for name, sender in SENDERS.items()
    }
    parameters = {
        "smtp_generic_maps": "texthash:@DIR@/generic",
        "recipient_delimiter": "+",
        "propagate_unmatched_extensions": "canonical, virtual, generic",
    }
    return tell_both(messages, parameters, SENDERS)


def fields(content: bytes) -> list[bytes]:
    """The header fields, with one space for white space of any sort."""
    head = without_relay(content).partition(b"\r\n\r\n")[0]
    return [b" ".join(line.split()) for line in re.sub(rb"\r\n[ \t]+", b" ", head).split(b"\r\n")]


@pytest.mark.parametrize("name", SENDERS)
def test_s074_generic_maps_rewrite_as_postfix_does(generic: Both, name: str) -> None:
    def path(line: str) -> str:
        return line.partition(">")[0]

    assert path(generic.ours.mails[name]) == path(generic.postfix.mails[name])
    assert fields(generic.ours.contents[name]) == fields(generic.postfix.contents[name])


@pytest.mark.peer("postfix")
@pytest.mark.parametrize("name", ["actions", "folded-field", "parts"])
def test_s084_postmap_finds_for_header_fields_what_we_find(name: str, tmp_path: Path) -> None:
    table = tmp_path / "header"
    table.write_text(RULES["header"])
    message = HEAD + CHECKED[name]
    done = subprocess.run(
        [find_program("postmap") or "postmap", "-h", "-q", "-", f"regexp:{table}"],
        input=message.replace(b"\r\n", b"\n"),
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.stdout.decode() == "".join(ours(table, message))


def test_s084_postmap_finds_for_body_lines_what_we_find(tmp_path: Path) -> None:
    table = tmp_path / "body"
    table.write_text(RULES["body"])
    body = CHECKED["body"].replace(b"\r\n", b"\n")[1:]
    done = subprocess.run(
        [find_program("postmap") or "postmap", "-b", "-q", "-", f"regexp:{table}"],
        input=b"\n" + body,
        stdout=subprocess.PIPE,
        check=False,
    )
    found = open_table(f"regexp:{table}", environ={}, clock=lambda: 0.0)
    lines = {line: trio.run(found.lookup, line) for line in body.decode().splitlines()}
    assert done.stdout.decode() == "".join(
        f"{line}\t{text}\n" for line, text in lines.items() if text is not None
    )


def ours(table: Path, message: bytes) -> Iterator[str]:
    """What postmap -h writes: each primary field that the table has, and the text there."""
    found = open_table(f"regexp:{table}", environ={}, clock=lambda: 0.0)
    parser = MimeParser(parts=False)
    for event in (*parser.feed(message), *parser.finish()):
        if isinstance(event, Header) and event.place is Place.PRIMARY:
            text = trio.run(found.lookup, event.text.decode())
            if text is not None:
                yield f"{event.text.decode()}\t{text}\n"
