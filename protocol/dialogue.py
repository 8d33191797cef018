"""The dialogue: which command may be sent now, and which command a reply answers.

Replies answer commands in order (RFC 2920 section 3.1), so what is in flight *is* most of the
state; the table below says the rest. It knows no role, no time and no content of replies beyond
their first digit (and the 354 that DATA waits for). Start at `Dialogue`.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Final
from typing import Protocol as TypingProtocol

from protocol.command import (
    Auth,
    AuthResponse,
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
    StartTls,
    Xforward,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import Reply


class State(Enum):
    """Where the dialogue stands once everything sent so far is accepted."""

    CONNECTED = "waiting for the greeting"
    GREETED = "greeted"  # nobody introduced yet
    UNWELCOME = "after a greeting that refused us"  # RFC 5321 section 3.1: only QUIT is left
    INTRODUCING = "introducing"  # EHLO, LHLO or HELO is unanswered
    INTRODUCED = "introduced"  # no transaction
    TLS_ASKED = "waiting for permission to begin with TLS"
    SECURING = "beginning with TLS"  # nothing more is said in this dialogue: a new one begins
    AUTHENTICATING = "logging in"  # AUTH, or a step of it, is unanswered
    CHALLENGED = "asked for the next step of logging in"  # 334 was read
    TRANSACTION = "in a mail transaction"  # MAIL was sent
    REFUSED = "after a refused MAIL"  # RCPT and DATA may still be under way, or MAIL again
    DATA_ASKED = "waiting for permission to send the content"
    DATA_HOPELESS = "waiting for the reply to DATA after a refused MAIL"
    CONTENT = "sending the content"  # 354 was read
    ENDED = "ended"  # QUIT was sent


Moves = Mapping[type[Command], State]

_NO_TRANSACTION: Final[Moves] = {
    Ehlo: State.INTRODUCING,
    Lhlo: State.INTRODUCING,
    Helo: State.INTRODUCING,
    Mail: State.TRANSACTION,
    Xforward: State.INTRODUCED,
    Noop: State.INTRODUCED,
    Rset: State.INTRODUCED,
    Quit: State.ENDED,
}

# What may be sent in which state, and the state after sending it. EHLO, AUTH, STARTTLS, DATA end a
# pipelined group (RFC 2920 section 3.1): behind them nothing may be sent but QUIT until they are
# answered. Behind the final dot anything may: the next transaction, RSET, QUIT.
MOVES: Final[Mapping[State, Moves]] = MappingProxyType(
    {
        State.CONNECTED: {},
        State.UNWELCOME: {Quit: State.ENDED},
        State.GREETED: {
            Ehlo: State.INTRODUCING,
            Lhlo: State.INTRODUCING,
            Helo: State.INTRODUCING,
            Noop: State.GREETED,
            Rset: State.GREETED,
            Quit: State.ENDED,
        },
        State.INTRODUCING: {Quit: State.ENDED},
        State.INTRODUCED: {
            **_NO_TRANSACTION,
            StartTls: State.TLS_ASKED,
            Auth: State.AUTHENTICATING,
        },
        State.TLS_ASKED: {Quit: State.ENDED},
        State.SECURING: {},
        State.AUTHENTICATING: {Quit: State.ENDED},
        State.CHALLENGED: {AuthResponse: State.AUTHENTICATING},  # any other would be taken for one
        State.TRANSACTION: {
            Rcpt: State.TRANSACTION,
            Data: State.DATA_ASKED,
            Noop: State.TRANSACTION,
            Rset: State.INTRODUCED,
            Quit: State.ENDED,
        },
        # The server knows of no transaction, but what was planned behind MAIL may follow all the
        # same: the rest of a flight that was too large for one window.
        State.REFUSED: {
            **_NO_TRANSACTION,
            Rcpt: State.REFUSED,
            Data: State.DATA_HOPELESS,
            Noop: State.REFUSED,
        },
        State.DATA_ASKED: {Quit: State.ENDED},
        State.DATA_HOPELESS: {Quit: State.ENDED},
        State.CONTENT: {EndOfData: State.INTRODUCED},
        State.ENDED: {},
    }
)

# What a reply changes: (state, command) -> (state if it was accepted, state if it was refused).
# Accepted: 2xx, for DATA 354; for AUTH, 3xx means that it goes on, all else that it is over. What
# is not listed changes nothing. A refused DATA leaves the transaction open, if there was one: RSET
# ends it. A 354 after a refused MAIL wants its dot, too.
_ANSWERED: Final[Mapping[tuple[State, type[Command]], tuple[State, State]]] = MappingProxyType(
    {
        (State.INTRODUCING, Ehlo): (State.INTRODUCED, State.GREETED),
        (State.INTRODUCING, Lhlo): (State.INTRODUCED, State.GREETED),
        (State.INTRODUCING, Helo): (State.INTRODUCED, State.GREETED),
        (State.TLS_ASKED, StartTls): (State.SECURING, State.INTRODUCED),
        (State.AUTHENTICATING, Auth): (State.CHALLENGED, State.INTRODUCED),
        (State.AUTHENTICATING, AuthResponse): (State.CHALLENGED, State.INTRODUCED),
        (State.TRANSACTION, Mail): (State.TRANSACTION, State.REFUSED),
        (State.DATA_ASKED, Mail): (State.DATA_ASKED, State.DATA_HOPELESS),
        (State.DATA_ASKED, Data): (State.CONTENT, State.TRANSACTION),
        (State.DATA_HOPELESS, Data): (State.CONTENT, State.REFUSED),
    }
)


class _Place:
    """One state with its rows of the tables above, found without hashing an Enum each time."""

    __slots__ = ("answered", "moves", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.moves: dict[type[Command], _Place] = {}
        self.answered: dict[type[Command], tuple[_Place, _Place]] = {}


def _places() -> Mapping[State, _Place]:
    places = {state: _Place(state) for state in State}
    for state, moves in MOVES.items():
        places[state].moves = {kind: places[after] for kind, after in moves.items()}
    for (state, kind), (accepted, refused) in _ANSWERED.items():
        places[state].answered[kind] = (places[accepted], places[refused])
    return MappingProxyType(places)


_PLACES: Final = _places()


class Witness(TypingProtocol):
    """Who writes down what is said. Called at once, must not raise, and sees secrets."""

    def said(self, command: Command, wire: bytes) -> None:
        """`command` is in flight from now on; `wire`: its octets."""

    def heard(self, command: Command | None, reply: Reply) -> None:
        """`reply` answers `command`; None: it is the greeting."""


class Dialogue:
    """Pairs each reply with the command it answers, any number in flight."""

    def __init__(self, state: State = State.CONNECTED, witnesses: tuple[Witness, ...] = ()) -> None:
        """Begin with the greeting, or in `state` with a session that others opened."""
        self._place = _PLACES[state]
        self.witnesses = witnesses
        # With its octets. A list: a deque takes 700 of them, in thousands of waiting sessions.
        self._in_flight: list[tuple[Command, int]] = []
        self._answered = 0  # replies that the oldest command has had; only EndOfData expects more
        self._unanswered_octets = 0

    def anew(self, state: State) -> "Dialogue":
        """The dialogue with the same peer after it has begun anew, behind STARTTLS."""
        return Dialogue(state)

    def receive_greeting(self, reply: Reply) -> None:
        """Take the one reply that answers no command.

        Raises LocalProtocolError if it was taken before.
        """
        if self.state is not State.CONNECTED:
            raise LocalProtocolError(f"no greeting is expected {self._where()}")
        self._place = _PLACES[State.GREETED if reply.positive else State.UNWELCOME]
        for witness in self.witnesses:
            witness.heard(None, reply)

    def send(self, command: Command, wire: bytes | None = None) -> bytes:
        """Return the octets of `command`, which is in flight from now on.

        `wire`: its octets, where the caller has them (`Command.to_wire`) already. Raises
        LocalProtocolError, and changes nothing, if it is not its turn or if it cannot be written.
        """
        place = self._place.moves.get(type(command))
        if place is None:
            raise LocalProtocolError(f"{command.phrase} must not be sent {self._where()}")
        if wire is None:
            wire = command.to_wire()
        self._in_flight.append((command, len(wire)))
        self._unanswered_octets += len(wire)
        self._place = place
        for witness in self.witnesses:
            witness.said(command, wire)
        return wire

    def send_all(self, commands: Sequence[tuple[Command, bytes]]) -> bytes:
        """As send() of each command with its octets; returns them all. Nothing if one may not be.

        Raises LocalProtocolError.
        """
        place, total = self._place, 0
        for command, wire in commands:
            after = place.moves.get(type(command))
            if after is None:
                raise LocalProtocolError(f"{command.phrase} must not be sent {self._where()}")
            place = after
            total += len(wire)
        self._in_flight.extend([(command, len(wire)) for command, wire in commands])
        self._unanswered_octets += total
        self._place = place
        for witness in self.witnesses:
            for command, wire in commands:
                witness.said(command, wire)
        return b"".join([wire for _, wire in commands])

    def receive_reply(self, reply: Reply) -> tuple[Command, Reply]:
        """Return the command that `reply` answers, and `reply`.

        Raises RemoteProtocolError if nothing is in flight.
        """
        if not self._in_flight:
            raise RemoteProtocolError(f"unsolicited reply: {reply.text}")
        command, octets = self._in_flight[0]
        for witness in self.witnesses:
            witness.heard(command, reply)
        if type(command) is EndOfData and self._answered + 1 < command.replies:
            self._answered += 1  # LMTP: more recipients have their reply to come
            return command, reply
        self._in_flight.pop(0)
        self._answered = 0
        self._unanswered_octets -= octets
        if after := self._place.answered.get(type(command)):
            kind = type(command)
            if kind is Data:
                accepted = reply.code == 354
            elif kind is Auth or kind is AuthResponse:
                accepted = reply.intermediate
            else:
                accepted = reply.positive
            self._place = after[0] if accepted else after[1]
        return command, reply

    @property
    def state(self) -> State:
        """Where the dialogue stands, taking what is in flight for accepted."""
        return self._place.state

    @property
    def oldest(self) -> Command | None:
        """The command that the next reply answers; None: none is expected."""
        return self._in_flight[0][0] if self._in_flight else None

    @property
    def in_step(self) -> bool:
        """No reply is outstanding: a precondition for reusing the session."""
        return not self._in_flight

    @property
    def in_flight(self) -> int:
        """Commands that wait for a reply; one in flight per EndOfData, however many replies."""
        return len(self._in_flight)

    @property
    def unanswered_octets(self) -> int:
        """Octets of the commands in flight.

        RFC 2920 section 3.1: who sends more than the peer's window without reading may deadlock
        with a peer that does the same with its replies; callers keep this below a bound.
        """
        return self._unanswered_octets

    def _where(self) -> str:
        return f"in state {self.state.name} ({self.state.value})"
