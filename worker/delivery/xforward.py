"""XFORWARD: tell a trusted content filter where the message really came from (S048, S075)."""

from protocol import phrases
from protocol.envelope_parameters import xforward_commands
from protocol.request import DeliveryRequest
from worker.delivery.session import Session
from worker.status.events import Emit, Warned


async def forward_client(session: Session, request: DeliveryRequest, emit: Emit) -> None:
    """Send the attributes that the server announced; a refusal only warns.

    Raises SessionError if the session breaks.
    """
    for command in xforward_commands(request.client, session.capabilities):
        with session.conversation() as talk:
            reply = await talk.ask(command, phrases.XFORWARD, session.settings.limits.xforward)
        if not reply.positive:
            emit(Warned(phrases.said(session.peer, reply, command.phrase), request.queue_id))
