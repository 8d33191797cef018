"""Which sessions of one request the postmaster is to see (notify_classes, S155)."""

from protocol.request import DeliveryRequest, Protocol
from protocol.transcript import MAX_TRANSCRIPTS, Transcript, Trouble
from worker.config.tables import TableError
from worker.delivery.content_sending import ContentUnreadable
from worker.delivery.recorder import Recorder, RecordingRules
from worker.delivery.security import Security
from worker.delivery.session import Session
from worker.errors import DeliveryError
from worker.network.address import Endpoint


class Transcripts:
    """Gives sessions their recorders, and keeps what those that had trouble have written down."""

    def __init__(self, request: DeliveryRequest, rules: RecordingRules) -> None:
        self._records = rules.wants(request.sender)
        self._wanted = rules.troubles
        self._lmtp = request.protocol is Protocol.LMTP
        self.kept: list[Transcript] = []  # MAX_TRANSCRIPTS at most

    def recorder(self, security: Security) -> Recorder | None:
        """For a new connection; None: nothing is to be written down."""
        return Recorder(security.secrets) if self._records else None

    def record(self, session: Session) -> None:
        """Have written down what is said about this message, if that is wanted; no other's."""
        if not self._records:
            session.record(None)
            return
        recorder = session.recorder or Recorder(session.security.secrets)
        if session.uses:
            recorder.next_message()
        session.record(recorder)  # also if it was there: the dialogue may be another one

    def keep(
        self, recorder: Recorder | None, endpoint: Endpoint, error: BaseException | None = None
    ) -> None:
        """The session, which `error` has ended, has done its part: is the postmaster to see it?"""
        if recorder is None or len(self.kept) >= MAX_TRANSCRIPTS:
            return
        if (trouble := _trouble_of(error)) is not None:
            recorder.troubles.add(trouble)
        transcript = recorder.transcript(endpoint.relay, self._wanted, lmtp=self._lmtp)
        if transcript is not None:
            self.kept.append(transcript)


def _trouble_of(error: BaseException | None) -> Trouble | None:
    """What of our own has ended a session; None: nothing of ours."""
    if isinstance(error, DeliveryError) and isinstance(error.__cause__, TableError):
        return Trouble.DATA
    if isinstance(error, ContentUnreadable):
        return Trouble.RESOURCE
    if isinstance(error, Exception) and not isinstance(error, DeliveryError):
        return Trouble.SOFTWARE
    return None
