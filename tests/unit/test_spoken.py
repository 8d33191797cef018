"""What is written down of a session: everything but secrets."""

from protocol.command import Auth, AuthResponse, Command, EndOfData, Mail
from protocol.dialogue import Dialogue, State
from protocol.reply import Reply
from protocol.sasl.secret import Secret
from protocol.spoken import command_text, reply_lines

CANARY = "Y2FuYXJ5LXNlY3JldA=="


def test_a_command_is_shown_as_it_was_sent_and_what_is_not_printable_is_a_question_mark() -> None:
    mail = Mail("a@example.com", ())
    assert command_text(mail, mail.to_wire()) == "MAIL FROM:<a@example.com>"
    assert command_text(mail, b"MAIL \x1b[2J\xff\r\n") == "MAIL ?[2J?"
    assert command_text(EndOfData(), b"") == "."


def test_no_line_of_a_log_in_shows_a_secret() -> None:
    for command in (Auth("PLAIN", Secret(CANARY)), AuthResponse(Secret(CANARY))):
        assert CANARY not in command_text(command, command.to_wire())
        echo = Reply(535, (f"5.7.8 I do not know {CANARY}",), enhanced="5.7.8")
        assert reply_lines(command, echo) == ["535 5.7.8 [...]"]
        assert reply_lines(command, Reply(334, (CANARY,))) == ["334 [...]"]
    assert command_text(Auth("LOGIN"), b"AUTH LOGIN\r\n") == "AUTH LOGIN"
    assert command_text(AuthResponse(None), b"*\r\n") == "*"


def test_a_reply_of_several_lines_is_shown_line_by_line() -> None:
    assert reply_lines(None, Reply(220, ("mx", "", "ready"))) == ["220-mx", "220-", "220 ready"]


def test_a_witness_sees_each_command_and_each_reply_once_and_in_order() -> None:
    seen: list[str] = []

    class Listener:
        def said(self, command: Command, wire: bytes) -> None:
            seen.append("> " + command_text(command, wire))

        def heard(self, command: Command | None, reply: Reply) -> None:
            seen.extend("< " + line for line in reply_lines(command, reply))

    dialogue = Dialogue(State.CONNECTED, (Listener(),))
    dialogue.receive_greeting(Reply(220, ("hello",)))
    dialogue._place = Dialogue(State.CONTENT)._place  # the way there is not the point
    dialogue.send(EndOfData(2))
    mail = Mail("", ())
    dialogue.send_all([(mail, mail.to_wire())])
    for text in ("one", "two", "three"):
        dialogue.receive_reply(Reply(250, (text,)))
    assert seen == [
        *("< 220 hello", "> .", "> MAIL FROM:<>"),
        *("< 250 one", "< 250 two", "< 250 three"),
    ]
