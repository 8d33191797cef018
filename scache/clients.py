"""All clients at once: one epoll object, one task, a conversation for each.

A conversation is a generator (`channel.py`), gone on with when the client has done what it waits
for. Not a trio task for each client: a save and a find wait four times, and a switch of tasks with
its new arming of the event loop costs more than the answer (0.14 ms of CPU for both, here 0.08).
trio has the rest: the wait for any of them, time, and the end.
"""

import logging
import select
import socket
from collections.abc import Callable
from typing import Final

import trio

from protocol.errors import ProtocolError
from scache.channel import NEVER, Channel, Steps, Wait

log = logging.getLogger("scache")

_AT_ONCE: Final = 64  # events of one look
_ROUNDS: Final = 16  # looks before other tasks have their turn
_EVENTS: Final = {
    Wait.REQUEST: select.EPOLLIN,
    Wait.READ: select.EPOLLIN,
    Wait.WRITE: select.EPOLLOUT,
}

Talk = Callable[[Channel], Steps[None]]


class _Client:
    """One client: its socket, and how far the conversation is."""

    __slots__ = ("channel", "events", "sock", "steps")

    def __init__(self, sock: socket.socket, talk: Talk) -> None:
        self.sock = sock
        self.channel = Channel(sock)
        self.steps = talk(self.channel)
        self.events = 0  # what the epoll object watches it for


class Clients:
    """The clients that are connected; owns their sockets. `run()` it, at the end `shut()` it."""

    def __init__(self, limit: int, patience: float) -> None:
        """`limit`: clients at the same time. `patience`: seconds for one exchange."""
        self._patience = patience
        self._room = trio.Semaphore(limit)
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}

    def __len__(self) -> int:
        return len(self._clients)

    async def wait_room(self) -> None:
        """Return when one more client may be added."""
        await self._room.acquire()

    def add(self, sock: socket.socket, talk: Talk) -> None:
        """Converse with a client, for which wait_room() has made room; `sock` is non-blocking."""
        client = _Client(sock, talk)
        self._clients[sock.fileno()] = client
        self._go_on(client)

    async def run(self) -> None:
        """Go on with whoever has something to say, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drop_stalled)
            while True:
                await trio.lowlevel.wait_readable(self._epoll)
                for _ in range(_ROUNDS):
                    if not (events := self._epoll.poll(0, _AT_ONCE)):
                        break
                    for fd, _ in events:
                        # Nobody is added in this loop: no number in `events` has a new owner.
                        if (client := self._clients.get(fd)) is not None:
                            self._go_on(client)

    def _go_on(self, client: _Client) -> None:
        """The next step of a conversation. Its trouble is its own: the others do not notice."""
        try:
            wait = next(client.steps)
            if wait is not Wait.REQUEST and client.channel.busy_since == NEVER:
                client.channel.busy_since = trio.current_time()
            if client.events != (events := _EVENTS[wait]):
                self._watch(client, events)
        except StopIteration:
            self._end(client)
        except OSError:  # it is gone, in the middle of an exchange or not
            self._end(client)
        except ProtocolError as exc:
            log.warning("client dropped: %s", exc)
            self._end(client)
        except Exception:
            log.exception("serving a client")
            self._end(client)

    def _watch(self, client: _Client, events: int) -> None:
        if client.events:
            self._epoll.modify(client.sock, events)
        else:
            self._epoll.register(client.sock, events)
        client.events = events

    def _end(self, client: _Client) -> None:
        client.steps.close()  # closes what the conversation owns at this moment
        del self._clients[client.sock.fileno()]
        client.sock.close()  # and with it the watch: nobody else has a copy
        self._room.release()

    async def _drop_stalled(self) -> None:
        """End clients that stop in the middle of an exchange, a tenth of the limit late at most.

        A look at all of them now and then costs less than a deadline of its own for each exchange.
        """
        while True:
            await trio.sleep(self._patience / 10)
            oldest = trio.current_time() - self._patience
            for client in [
                one for one in self._clients.values() if one.channel.busy_since <= oldest
            ]:
                log.warning("client dropped: it stopped in the middle of an exchange")
                self._end(client)

    def shut(self) -> None:
        """End all conversations."""
        for client in list(self._clients.values()):
            self._end(client)
        self._epoll.close()
