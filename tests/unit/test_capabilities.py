"""What a server announces, read leniently."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.capabilities import Capabilities
from protocol.reply import Reply


def ehlo(*lines: str, discard: tuple[str, ...] = ()) -> Capabilities:
    """The capabilities of a reply with these lines after the greeting line."""
    return Capabilities.from_reply(Reply(250, ("mx.example at your service", *lines)), discard)


def test_s065_all_known_keywords_are_read_in_any_case() -> None:
    assert ehlo(
        "pipelining",
        "Size 1000",
        "8BITMIME",
        "SmtpUtf8",
        "DSN",
        "ENHANCEDSTATUSCODES",
        "STARTTLS",
        "CHUNKING",
        "REQUIRETLS",
        "XFORWARD name ADDR",
        "AUTH plain LOGIN",
        "LIMITS MAILMAX=5 rcptmax=100 RCPTDOMAINMAX=1 OTHER=7",
        "VRFY",
        "X-UNKNOWN 1 2 3",
    ) == Capabilities(
        pipelining=True,
        eightbitmime=True,
        smtputf8=True,
        dsn=True,
        enhanced_status_codes=True,
        starttls=True,
        chunking=True,
        requiretls=True,
        size_announced=True,
        size_limit=1000,
        xforward=frozenset({"NAME", "ADDR"}),
        auth=("PLAIN", "LOGIN"),
        mail_max=5,
        rcpt_max=100,
        rcpt_domain_max=1,
        greeting_name="mx.example",
    )


def test_helo_gives_nothing() -> None:
    assert Capabilities.from_reply(Reply(250, ("mx.example",))) == Capabilities(
        greeting_name="mx.example"
    )


def test_the_first_line_is_no_keyword() -> None:
    assert not Capabilities.from_reply(Reply(250, ("PIPELINING",))).pipelining


def test_s065_size_without_a_value_means_no_limit() -> None:
    for line in ("SIZE", "SIZE 0", "SIZE many", "SIZE -1", "SIZE " + "9" * 40):
        assert ehlo(line).size_announced
        assert ehlo(line).size_limit == 0


def test_s065_auth_is_read_in_its_old_form_too_and_each_mechanism_once() -> None:
    assert ehlo("AUTH PLAIN LOGIN", "AUTH=LOGIN CRAM-MD5").auth == ("PLAIN", "LOGIN", "CRAM-MD5")


def test_discarded_keywords_are_ignored_and_named() -> None:
    capabilities = ehlo(
        "PIPELINING",
        "SIZE 1000",
        "AUTH PLAIN",
        "AUTH=PLAIN",
        "DSN",
        discard=("pipelining", "Size", "auth", "starttls", "silent-discard"),
    )
    assert capabilities == Capabilities(
        dsn=True, discarded=("PIPELINING", "SIZE", "AUTH"), greeting_name="mx.example"
    )


@given(st.lists(st.text(max_size=30), max_size=8))
def test_no_reply_makes_reading_fail(lines: list[str]) -> None:
    Capabilities.from_reply(Reply(250, tuple(lines)))
