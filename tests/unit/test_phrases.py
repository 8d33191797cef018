"""Postfix's words, as log analysers know them."""

from protocol import phrases
from protocol.command import EndOfData, Rcpt
from protocol.reply import Reply

MTA = "mx.example[192.0.2.1]"


def test_a_refusal_quotes_the_server_on_one_line_and_names_the_command() -> None:
    reply = Reply(550, ("5.1.1 no such", "user"))
    assert phrases.said(MTA, reply, Rcpt("a@b").phrase) == (
        "host mx.example[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO command)"
    )
    assert phrases.said(MTA, reply, EndOfData.phrase).endswith("(in reply to end of DATA command)")


def test_failures_of_a_session_name_the_phase() -> None:
    assert phrases.lost_connection(MTA, phrases.CONTENT) == (
        "lost connection with mx.example[192.0.2.1] while sending message body"
    )
    assert phrases.timed_out(MTA, phrases.END_OF_DATA) == (
        "conversation with mx.example[192.0.2.1] timed out while "
        "sending end of data -- message may be sent more than once"
    )


def test_failures_of_a_site() -> None:
    assert phrases.refused_to_talk(MTA, Reply(421, ("busy",))) == (
        "host mx.example[192.0.2.1] refused to talk to me: 421 busy"
    )
    assert phrases.connect_failed(MTA, 25, "Connection refused") == (
        "connect to mx.example[192.0.2.1]:25: Connection refused"
    )
    assert phrases.connect_failed("me[/run/lmtp]", 0, "No such file or directory") == (
        "connect to me[/run/lmtp]: No such file or directory"
    )
    assert phrases.size_exceeded(2000, 1000, MTA) == (
        "message size 2000 exceeds size limit 1000 of server mx.example[192.0.2.1]"
    )
