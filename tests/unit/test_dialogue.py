"""The dialogue: replies find their commands, and nothing is said out of turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.command import (
    Command,
    Data,
    Ehlo,
    EndOfData,
    Helo,
    Lhlo,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    Xforward,
)
from protocol.dialogue import MOVES, Dialogue, State
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import Reply

OK = Reply(250, ("ok",))
GO_AHEAD = Reply(354, ("go ahead",))
NO = Reply(550, ("no",))
COMMANDS: list[Command] = [
    Ehlo("x"),
    Lhlo("x"),
    Helo("x"),
    Mail(""),
    Rcpt("a@b"),
    Data(),
    EndOfData(),
    EndOfData(3),
    Rset(),
    Noop(),
    Quit(),
    Xforward((("NAME", "x"),)),
]


def introduced() -> Dialogue:
    """A dialogue that is ready for mail."""
    return Dialogue(State.INTRODUCED)


def play(dialogue: Dialogue, *steps: Command | Reply) -> None:
    """Send the commands and receive the replies, in this order."""
    for step in steps:
        if isinstance(step, Reply):
            dialogue.receive_reply(step)
        else:
            dialogue.send(step)


def test_pipelined_replies_are_paired_with_their_commands() -> None:
    dialogue = introduced()
    commands: list[Command] = [Mail(""), Rcpt("a@x"), Rcpt("b@x"), Data()]
    wire = b"".join(dialogue.send(command) for command in commands)
    assert wire == b"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n"
    assert dialogue.in_flight == 4
    assert dialogue.unanswered_octets == len(wire)
    assert dialogue.oldest == commands[0]
    replies = [OK, OK, NO, GO_AHEAD]
    assert [dialogue.receive_reply(reply) for reply in replies] == list(
        zip(commands, replies, strict=True)
    )
    assert dialogue.in_step
    assert dialogue.unanswered_octets == 0
    assert dialogue.state is State.CONTENT


def test_a_whole_session_from_greeting_to_quit() -> None:
    dialogue = Dialogue()
    dialogue.receive_greeting(Reply(220, ("hello",)))
    play(dialogue, Ehlo("x"), NO, Helo("x"), OK)
    play(dialogue, Mail(""), OK, Rcpt("a@b"), OK, Data(), GO_AHEAD, EndOfData(), OK)
    play(dialogue, Rset(), OK, Mail(""), OK, Rcpt("a@b"), NO, Rset(), OK, Quit(), OK)
    assert dialogue.state is State.ENDED
    assert dialogue.in_step


def test_nothing_is_said_before_the_greeting() -> None:
    for command in COMMANDS:
        with pytest.raises(LocalProtocolError, match="waiting for the greeting"):
            Dialogue().send(command)


def test_after_a_greeting_that_refuses_only_quit_is_left() -> None:
    dialogue = Dialogue()
    dialogue.receive_greeting(Reply(554, ("no",)))
    with pytest.raises(LocalProtocolError):
        dialogue.send(Ehlo("x"))
    assert dialogue.send(Quit()) == b"QUIT\r\n"


def test_a_second_greeting_is_a_mistake_of_ours() -> None:
    with pytest.raises(LocalProtocolError):
        introduced().receive_greeting(OK)


def test_an_unsolicited_reply_is_an_error_of_the_peer() -> None:
    with pytest.raises(RemoteProtocolError, match="unsolicited reply: 250 ok"):
        introduced().receive_reply(OK)


def test_a_command_that_cannot_be_written_changes_nothing() -> None:
    dialogue = introduced()
    with pytest.raises(LocalProtocolError):
        dialogue.send(Mail("a\r\nb@x"))
    assert dialogue.in_step
    assert dialogue.state is State.INTRODUCED


def test_a_command_out_of_turn_names_the_state_and_the_command() -> None:
    with pytest.raises(LocalProtocolError, match=r"RCPT TO command .* INTRODUCED"):
        introduced().send(Rcpt("a@b"))


@pytest.mark.parametrize("behind", [Mail(""), Rcpt("a@b"), EndOfData(), Rset(), Noop()])
def test_data_ends_a_flight(behind: Command) -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data())
    with pytest.raises(LocalProtocolError):
        dialogue.send(behind)


def test_the_dot_follows_only_a_354() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data(), OK, OK, OK)
    with pytest.raises(LocalProtocolError):
        dialogue.send(EndOfData())


def test_the_next_transaction_may_follow_the_dot_at_once() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data(), OK, OK, GO_AHEAD, EndOfData())
    play(dialogue, Mail(""), Rcpt("a@b"), Data())
    assert dialogue.in_flight == 4


def test_a_refused_mail_leaves_no_transaction_open() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), NO, Mail(""), OK)
    assert dialogue.state is State.TRANSACTION


def test_what_was_pipelined_behind_a_refused_mail_may_still_be_sent() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), NO, Rcpt("c@d"), Data(), NO, NO, NO)
    play(dialogue, Mail(""), OK)
    assert dialogue.state is State.TRANSACTION


def test_a_mail_refused_after_data_was_sent_leaves_no_transaction_open() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data(), NO, NO, NO, Mail(""), OK)
    assert dialogue.state is State.TRANSACTION


def test_a_354_after_everything_was_refused_wants_its_dot() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data(), NO, NO, GO_AHEAD, EndOfData(), NO)
    assert dialogue.state is State.INTRODUCED


def test_a_refused_data_leaves_the_transaction_for_rset_to_end() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@b"), Data(), OK, NO, NO)
    with pytest.raises(LocalProtocolError):
        dialogue.send(Mail(""))
    play(dialogue, Rset(), OK, Mail(""), OK)


def test_lmtp_has_a_reply_for_each_accepted_recipient() -> None:
    dialogue = introduced()
    play(dialogue, Mail(""), Rcpt("a@x"), Rcpt("b@x"), Data(), OK, OK, OK, GO_AHEAD)
    end = EndOfData(2)
    assert dialogue.send(end) == b""
    dialogue.send(Quit())
    assert dialogue.receive_reply(OK) == (end, OK)
    assert dialogue.in_flight == 2
    assert dialogue.receive_reply(NO) == (end, NO)
    assert dialogue.receive_reply(OK) == (Quit(), OK)
    assert dialogue.in_step


def test_each_lmtp_transaction_has_its_own_replies() -> None:
    dialogue = introduced()
    for _ in range(3):
        play(dialogue, Mail(""), Rcpt("a@x"), Rcpt("b@x"), Data(), OK, OK, OK, GO_AHEAD)
        play(dialogue, EndOfData(2), OK)
        assert not dialogue.in_step
        play(dialogue, OK)
        assert dialogue.in_step


def test_every_state_is_in_the_table() -> None:
    assert set(MOVES) == set(State)


@given(
    st.lists(st.sampled_from(COMMANDS) | st.sampled_from([OK, NO, GO_AHEAD]), max_size=60),
)
def test_whatever_happens_replies_answer_in_order_and_counters_add_up(
    steps: list[Command | Reply],
) -> None:
    dialogue = introduced()
    expected: list[Command] = []  # one entry per reply still to come
    for step in steps:
        if isinstance(step, Reply):
            if expected:
                assert dialogue.receive_reply(step) == (expected.pop(0), step)
            else:
                with pytest.raises(RemoteProtocolError):
                    dialogue.receive_reply(step)
        elif type(step) in MOVES[dialogue.state]:
            dialogue.send(step)
            expected += [step] * (step.replies if isinstance(step, EndOfData) else 1)
        else:
            with pytest.raises(LocalProtocolError):
                dialogue.send(step)
        assert dialogue.in_step is (not expected)
        assert (dialogue.oldest is None) is (not expected)
        assert dialogue.unanswered_octets == sum(
            len(command.to_wire()) for command in expected if not isinstance(command, EndOfData)
        )
