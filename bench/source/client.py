"""One session of a load: takes the turns as they come, over one connection after the other.

Answers for what becomes of each message and for when a connection is left; what is said on one is
in `link.py`. Start at `Client.run`.
"""

import ssl
from collections.abc import Callable
from typing import Final

import trio

from bench.source.link import Link, LinkFailed, Transaction
from bench.source.load import Load, Phase
from bench.source.messages import Composer, Message
from bench.source.pace import Pace, Turn
from bench.source.tally import Outcome, Tally, Trouble
from bench.source.target import Dial
from protocol.errors import RemoteProtocolError
from protocol.reply import Reply

# Seconds after a connection that led to no session: a closed load would try the processor, too.
PAUSE: Final = 0.1


class Client:
    """One session. `number`: which one, from 0 on."""

    def __init__(
        self,
        load: Load,
        dial: Dial,
        composer: Composer,
        pace: Pace,
        tally: Tally,
        give_up: Callable[[str], None],
        number: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`give_up`: ends the whole load, for the reason given. `context`: for TLS, if wanted."""
        self._context = context
        self._load = load
        self._dial = dial
        self._composer = composer
        self._pace = pace
        self._tally = tally
        self._give_up = give_up
        self._number = number
        self._turn: Turn | None = None  # the one under way

    async def run(self) -> None:
        """Until there are no more turns."""
        while self._turn is not None or await self._take_turn():
            await self._connection()

    async def _take_turn(self) -> bool:
        """Wait for the next turn, and have it under way; False: there is none."""
        self._turn = turn = await self._pace.next()
        if turn is None:
            return False
        self._tally.begun += 1
        if self._load.rate is not None:
            self._tally.took(Phase.LATE, trio.current_time() - turn.due)
        return True

    async def _connection(self) -> None:
        """Send the message under way and those after it, as long as one connection lasts."""
        link = Link(self._load, self._tally, self._context)
        failure: LinkFailed | None = None
        try:
            with link.scope:
                await self._use(link)
            if link.scope.cancelled_caught:
                failure = link.overdue()
        except (
            OSError,
            EOFError,
            trio.BrokenResourceError,
            RemoteProtocolError,
            LinkFailed,
        ) as exc:
            failure = link.failure(exc)
        finally:
            await link.aclose()
        if failure is not None:
            self._failed(link, failure)
        if not link.messages:
            await self._unopened(failure, link.refusal)

    async def _use(self, link: Link) -> None:
        """Raises what `Link.failure` translates, with the message under way unsettled."""
        if not await link.open(self._dial, self._number):
            hard = link.refusal is not None and link.refusal.permanent
            self._settle(Outcome.REFUSED if hard else Outcome.DEFERRED)
            await link.quit()
            return
        self._tally.unopened = 0
        while self._turn is not None:
            message = self._composer(self._turn.number)
            transaction = await link.send(message)
            if link.stale:
                self._tally.stale += 1
                return  # the message is still under way, and the next connection takes it
            self._count(self._turn, message, transaction)
            if link.ended or link.messages == self._load.per_connection:
                break
            link.rest()
            await self._take_turn()
        await link.quit()

    def _count(self, turn: Turn, message: Message, transaction: Transaction) -> None:
        """The server has answered for the message under way."""
        tally = self._tally
        if transaction.accepted:
            # Refusals are quick: among these times they would flatter the server.
            tally.took(Phase.MESSAGE, trio.current_time() - turn.due)
            tally.octets += message.content.octets
        tally.recipients[Outcome.ACCEPTED] += transaction.accepted
        tally.recipients[Outcome.DEFERRED] += transaction.deferred
        tally.recipients[Outcome.REFUSED] += transaction.refused
        self._settle(transaction.outcome)

    def _settle(self, outcome: Outcome) -> None:
        self._tally.messages[outcome] += 1
        self._turn = None

    def _failed(self, link: Link, failure: LinkFailed) -> None:
        """The connection is of no further use, and neither is the message under way."""
        if link.stale and failure.trouble is Trouble.LOST:
            self._tally.stale += 1
            return
        self._tally.failure(failure.phase, failure.trouble, failure.text)
        if self._turn is not None:
            self._settle(Outcome.FAILED)

    async def _unopened(self, failure: LinkFailed | None, refusal: Reply | None) -> None:
        """The connection led to no session: pause, or give up."""
        self._tally.unopened += 1
        why = failure.text if failure else refusal.text if refusal else ""
        if self._tally.unopened == self._load.give_up:
            self._give_up(f"{self._load.give_up} connections in a row led to no session: {why}")
        await trio.sleep(PAUSE)
