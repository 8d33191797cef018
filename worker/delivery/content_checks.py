"""Header and body checks of a delivery agent (header_checks(5); S080 to S083).

Answers for what a table's text does to one header field or body line. What would change where the
message goes (REJECT, FILTER and the like) comes too late here: a warning, and the text stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.header_field import FIELD_NAME, is_mime
from protocol.mime import Header, Place
from worker.config.tables import Maps, TableError
from worker.delivery.content_settings import ContentSettings

# (action, "header" or "body", what was checked, the text behind the action)
Log = Callable[[str, str, str, str], None]
Warn = Callable[[str], None]

SHOWN: Final = 60  # characters of what was checked in an error
PIECE: Final = 2048  # octets of a line that a body check sees at a time: line_length_limit


class Where(Enum):
    """What is checked; the word for it in the log."""

    HEADER = "header"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to, with LF between lines. `text` None: it is left out."""

    text: bytes | None
    before: bytes | None = None  # to be put in front, as a line or field of its own
    changed: bool = False


@dataclass(frozen=True, slots=True)
class ContentChecks:
    """The tables of one message's checks, and who is told."""

    settings: ContentSettings
    log: Log
    warn: Warn

    @property
    def looks_into_parts(self) -> bool:
        """Fields of parts and of nested messages matter, or what is no field and so a body line."""
        settings = self.settings
        return bool(
            settings.mime_header_checks or settings.nested_header_checks or settings.body_checks
        )

    async def header(self, field: Header) -> Checked:
        """Check a field. Raises TableError."""
        name, maps = self._header_maps(field)
        return await self._check(name, maps, Where.HEADER, field.text)

    async def body(self, line: bytes) -> Checked:
        """Check a line of a body, or a piece of one. Raises TableError."""
        return await self._check("body_checks", self.settings.body_checks, Where.BODY, line)

    def _header_maps(self, field: Header) -> tuple[str, Maps]:
        if field.place is Place.PART or is_mime(field.name):
            return "mime_header_checks", self.settings.mime_header_checks
        if field.place is Place.NESTED:
            return "nested_header_checks", self.settings.nested_header_checks
        return "header_checks", self.settings.header_checks

    async def _check(self, name: str, maps: Maps, where: Where, text: bytes) -> Checked:
        if not maps or not text:  # an empty line fits no pattern, as in Postfix
            return Checked(text)
        shown = text.decode("utf-8", "surrogateescape")
        found = await maps.find(shown)
        if found is None:
            return Checked(text)
        if not found.strip():  # a slip in the table: nobody knows what was meant
            raise TableError(f"{name}: the text for {shown[:SHOWN]!r} is empty")
        word, *rest = found.split(None, 1)
        argument = rest[0].rstrip() if rest else ""
        return self._act(word.upper(), argument, name, where, text, shown)

    def _act(
        self, word: str, argument: str, name: str, where: Where, text: bytes, shown: str
    ) -> Checked:
        match word:
            case "DUNNO" | "OK":
                return Checked(text)
            case "IGNORE":
                return Checked(None)
            case "STRIP" | "WARN" | "INFO":
                action = {"WARN": "warning"}.get(word, word.lower())
                self.log(action, where.value, shown, argument)
                return Checked(None if word == "STRIP" else text)
            case "REPLACE" | "PREPEND":
                new = _lines(argument)
                if not new or (where is Where.HEADER and not FIELD_NAME.match(new)):
                    what = "a field, name: value" if where is Where.HEADER else "a text"
                    self.warn(f"{word} in {name} without {what}: {argument!r}; it has no effect")
                    return Checked(text)
                self.log(word.lower(), where.value, shown, argument)
                return Checked(new, changed=True) if word == "REPLACE" else Checked(text, new)
            case _:
                self.warn(f"unsupported command in {name}: {word!r}; it has no effect")
                return Checked(text)


def _lines(text: str) -> bytes:
    """The text as octets. Whatever it holds, it stays one field, and no line end but LF."""
    lines = text.replace("\r", " ").replace("\0", " ").split("\n")
    folded = [lines[0], *(line if line[:1] in (" ", "\t") else f" {line}" for line in lines[1:])]
    return "\n".join(folded).encode("utf-8", "surrogateescape")
