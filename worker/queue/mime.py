"""MIME messages whose parts have bodies of any octets: written as they are, parsed never."""

from email.generator import BytesGenerator
from email.message import Message
from email.policy import compat32
from io import BytesIO
from typing import Final

POLICY: Final = compat32.clone(linesep="\r\n", cte_type="8bit")


class Part(Message):
    """A part whose body is these octets, as they are: nothing parses or re-encodes them."""

    octets = b""

    def with_body(self, octets: bytes) -> "Part":
        """The same part, with its body."""
        if not octets.isascii():
            self["Content-Transfer-Encoding"] = "8bit"
        self.octets = octets
        return self


class _VerbatimGenerator(BytesGenerator):
    """Writes the bodies of Part; the library's own takes message/* for messages to re-write."""

    def _write_verbatim(self, part: Part) -> None:
        self.write(part.octets.decode("ascii", "surrogateescape"))

    _handle_text = _handle_message = _handle_message_delivery_status = _write_verbatim


def flatten(message: Message, *, body: bool = True) -> bytes:
    """A message's octets; without `body` its header fields alone."""
    out = BytesIO()
    _VerbatimGenerator(out, mangle_from_=False, policy=POLICY).flatten(message, linesep="\r\n")
    octets = out.getvalue()
    return octets if body else octets.removesuffix(b"\r\n")
