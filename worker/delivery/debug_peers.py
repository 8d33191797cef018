"""Sessions with listed peers are logged line by line (debug_peer_list, debug_peer_level).

A session is watched by way of its dialogue, which sees every command and every reply as what it is:
so nothing is asked in any other session, and what logs in is known by its type. Contents are never
shown. Secrets are not, nor what a server says to a log-in, nor any line of it with one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import trio

from protocol.command import Auth, AuthResponse, Command, EndOfData
from protocol.destination import DestinationError, parse_destination, split_nexthops
from protocol.dialogue import Dialogue, State
from protocol.reply import Reply
from protocol.request import DeliveryRequest
from protocol.sasl.secret import Secret
from protocol.spoken import response_of, without_secrets
from worker.config.config import Config
from worker.config.match_list import HostList
from worker.config.tables import TableError
from worker.delivery.security import Security
from worker.network.address import Endpoint
from worker.status.events import DialogueShown, Emit, Warned

SENT: Final = ">"
RECEIVED: Final = "<"
EXPLAINED: Final = "="
HIDDEN: Final = "[hidden]"
EXPLAINING: Final = 2  # the level from which on replies are explained


@dataclass(frozen=True, slots=True)
class DebugPeers:
    """Whose sessions are shown, and how much of them."""

    hosts: HostList  # debug_peer_list
    level: int  # debug_peer_level (2), at least 1
    emit: Emit

    @classmethod
    def from_config(cls, config: Config, emit: Emit) -> Self | None:
        """Read the parameters; None: nobody is watched."""
        level = config.integer("debug_peer_level")
        if not level or not config.text("debug_peer_list"):
            return None
        return cls(config.hosts("debug_peer_list"), level, emit)

    async def dialogue(
        self, request: DeliveryRequest, endpoint: Endpoint, security: Security, state: State
    ) -> Dialogue:
        """The dialogue, which stands at `state`, for a session with `endpoint`.

        It is watched if the nexthop, the server's name or its address is listed.
        """
        try:
            watched = await self._lists(request, endpoint)
        except TableError as exc:  # mail is not for that
            self.emit(Warned(f"debug_peer_list: {exc}", request.queue_id))
            watched = False
        if not watched:
            return Dialogue(state)
        protocol = request.protocol.value
        return ShownDialogue(
            state,
            endpoint.relay,
            protocol,
            self.emit,
            explains=self.level >= EXPLAINING,
            secrets=list(security.secrets),
        )

    async def _lists(self, request: DeliveryRequest, endpoint: Endpoint) -> bool:
        """Whether one of the names of a server is listed. Raises TableError."""
        if await self.hosts.matches(endpoint.host, endpoint.address):
            return True
        for name in _names(request):
            if await self.hosts.matches(name):
                return True
        return False


def _names(request: DeliveryRequest) -> list[str]:
    """The nexthop's destinations, as written, and without brackets and port."""
    nexthop = request.nexthop
    names: dict[str, None] = {}
    try:
        for text in (nexthop,) if nexthop.startswith("unix:") else split_nexthops(nexthop):
            names |= dict.fromkeys((text, parse_destination(text, request.protocol).name))
    except DestinationError:
        pass  # it leads nowhere
    return list(names)


class ShownDialogue(Dialogue):
    """A dialogue that tells what is said in it."""

    def __init__(
        self,
        state: State,
        relay: str,
        protocol: str,
        emit: Emit,
        *,
        explains: bool,
        secrets: list[Secret],
    ) -> None:
        """`explains`: tells of each reply what it answers. `secrets`: are not shown in replies."""
        super().__init__(state)
        self._relay = relay
        self._protocol = protocol
        self._emit = emit
        self._explains = explains
        self._secrets = secrets
        self._since: list[float] = []  # when each command that is in flight was sent

    def anew(self, state: State) -> Dialogue:
        """See Dialogue.anew()."""
        return ShownDialogue(
            state,
            self._relay,
            self._protocol,
            self._emit,
            explains=self._explains,
            secrets=self._secrets,
        )

    def receive_greeting(self, reply: Reply) -> None:
        """See Dialogue.receive_greeting()."""
        self._show_reply(reply)
        super().receive_greeting(reply)

    def send(self, command: Command, wire: bytes | None = None) -> bytes:
        """See Dialogue.send()."""
        octets = super().send(command, wire)
        self._show_command(command, octets)
        return octets

    def send_all(self, commands: Sequence[tuple[Command, bytes]]) -> bytes:
        """See Dialogue.send_all()."""
        whole = super().send_all(commands)
        for command, octets in commands:
            self._show_command(command, octets)
        return whole

    def receive_reply(self, reply: Reply) -> tuple[Command, Reply]:
        """See Dialogue.receive_reply()."""
        self._show_reply(reply)
        command, reply = super().receive_reply(reply)
        since = self._since[0]
        if len(self._since) > self.in_flight:  # in LMTP further replies to a dot may be to come
            self._since.pop(0)
        if self._explains:
            seconds = trio.current_time() - since
            text = f"{reply.code:03} after {seconds:.3f} s, in reply to {command.phrase}"
            self._show(EXPLAINED, text)
        return command, reply

    def _show_command(self, command: Command, octets: bytes) -> None:
        self._since.append(trio.current_time())
        if isinstance(command, Auth | AuthResponse):
            text = self._login(command)
        elif isinstance(command, EndOfData):
            text = "."
        else:
            text = octets.decode("utf-8", "replace").removesuffix("\r\n")
        self._show(SENT, text)

    def _login(self, command: Auth | AuthResponse) -> str:
        """What may be seen of it. Its response is a secret that replies may repeat."""
        response = response_of(command)
        if response is not None:
            self._secrets.append(response)
        if isinstance(command, Auth):
            return f"AUTH {command.mechanism}" + (f" {HIDDEN}" if response is not None else "")
        return "*" if response is None else HIDDEN

    def _show_reply(self, reply: Reply) -> None:
        code = f"{reply.code:03}"
        if isinstance(self.oldest, Auth | AuthResponse):
            self._show(RECEIVED, f"{code} {HIDDEN}")
            return
        *first, last = without_secrets(reply.lines or ("",), self._secrets, HIDDEN)
        for mark, line in (*(("-", line) for line in first), (" ", last)):
            self._show(RECEIVED, f"{code}{mark}{line}".rstrip())

    def _show(self, mark: str, text: str) -> None:
        self._emit(DialogueShown(self._relay, mark, text, self._protocol))
