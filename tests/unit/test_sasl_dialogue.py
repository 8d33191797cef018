"""AUTH among the other commands: its octets, when it may be said, and what follows it."""

import pytest

from protocol.command import RESPONSE_LIMIT, Auth, AuthResponse, Command, Mail, Noop, Quit, Rset
from protocol.dialogue import Dialogue, State
from protocol.errors import LocalProtocolError
from protocol.reply import Reply
from protocol.sasl.secret import Secret

GO_ON = Reply(334, ("",))
OK = Reply(235, ("2.7.0 ok",))
NO = Reply(535, ("5.7.8 no",))


@pytest.mark.parametrize(
    ("command", "wire"),
    [
        (Auth("PLAIN"), b"AUTH PLAIN\r\n"),
        (Auth("PLAIN", Secret("AGEAYg==")), b"AUTH PLAIN AGEAYg==\r\n"),
        (Auth("EXTERNAL", Secret("")), b"AUTH EXTERNAL =\r\n"),
        (Auth("SCRAM-SHA-256-PLUS", Secret("biws")), b"AUTH SCRAM-SHA-256-PLUS biws\r\n"),
        (AuthResponse(Secret("AGEAYg==")), b"AGEAYg==\r\n"),
        (AuthResponse(Secret("")), b"\r\n"),
        (AuthResponse(None), b"*\r\n"),
        (AuthResponse(Secret("a" * RESPONSE_LIMIT)), b"a" * RESPONSE_LIMIT + b"\r\n"),
    ],
)
def test_octets(command: Command, wire: bytes) -> None:
    assert command.to_wire() == wire


@pytest.mark.parametrize(
    "command",
    [
        Auth("PLAIN", Secret("canary\r\nQUIT")),
        Auth("PLAIN", Secret("canary with space")),
        Auth("PLAIN", Secret("*canary")),
        AuthResponse(Secret("canary\n")),
        AuthResponse(Secret("canar\xe9")),
        AuthResponse(Secret("*")),
        AuthResponse(Secret("canary00" * 2_000)),
        Auth("PLAIN\r\nQUIT"),
        Auth("plain"),
        Auth(""),
        Auth("A" * 21),
    ],
)
def test_what_is_not_base64_of_a_mechanism_is_not_sent(command: Command) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        command.to_wire()
    assert "canar" not in str(caught.value)


def where(dialogue: Dialogue) -> State:
    """Its state; asked for by a call, the type checker does not take it for settled."""
    return dialogue.state


def test_s197_auth_goes_on_with_334_and_ends_with_anything_else() -> None:
    for last in (OK, NO, Reply(454, ("later",)), Reply(150, ("?",))):
        dialogue = Dialogue(State.INTRODUCED)
        dialogue.send(Auth("LOGIN"))
        assert where(dialogue) is State.AUTHENTICATING
        for _ in range(2):
            assert dialogue.receive_reply(GO_ON)[1] is GO_ON
            assert where(dialogue) is State.CHALLENGED
            dialogue.send(AuthResponse(Secret("YQ==")))
        command, reply = dialogue.receive_reply(last)
        assert command.phrase == "AUTH command"
        assert reply is last
        assert where(dialogue) is State.INTRODUCED
        assert dialogue.in_step


@pytest.mark.parametrize("command", [Mail(""), Noop(), Rset(), Auth("PLAIN"), Quit()])
def test_nothing_but_an_answer_is_said_to_a_challenge(command: Command) -> None:
    dialogue = Dialogue(State.INTRODUCED)
    dialogue.send(Auth("PLAIN"))
    if not isinstance(command, Quit):
        with pytest.raises(LocalProtocolError):
            dialogue.send(command)
    dialogue.receive_reply(GO_ON)
    with pytest.raises(LocalProtocolError, match="must not be sent in state CHALLENGED"):
        dialogue.send(command)
    dialogue.send(AuthResponse(None))
    dialogue.receive_reply(Reply(501, ("cancelled",)))
    dialogue.send(command)


@pytest.mark.parametrize(
    "state", [s for s in State if s not in (State.INTRODUCED, State.CHALLENGED)]
)
def test_auth_belongs_between_ehlo_and_mail(state: State) -> None:
    for command in (Auth("PLAIN"), AuthResponse(None)):
        with pytest.raises(LocalProtocolError):
            Dialogue(state).send(command)


def test_any_3xx_to_auth_is_a_challenge_as_in_postfix() -> None:
    dialogue = Dialogue(State.INTRODUCED)
    dialogue.send(Auth("PLAIN"))
    dialogue.receive_reply(Reply(354, ("go",)))
    assert where(dialogue) is State.CHALLENGED
