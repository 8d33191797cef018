"""Cipher grades and exclusions, and the list for OpenSSL that they come to (S108 to S115).

The list rules TLS 1.2 and below; suites of TLS 1.3 are all sound and always on.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Self

from OpenSSL import SSL

from worker.config.config import Config
from worker.config.values import BadValueError
from worker.tls.policy import Level

_SEPARATORS: Final = re.compile(r"[,:\s]+")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# In a list also with operators, and with commands: HIGH, !aNULL, @STRENGTH, DEFAULT@SECLEVEL=1.
_COMMAND: Final = re.compile(
    r"(?!\Z)([!+-]?[A-Za-z0-9_][A-Za-z0-9_.+-]*)?(@STRENGTH|@SECLEVEL=[0-5])?"
)


class Grade(Enum):
    """The weakest ciphers that are taken. The value is the word of main.cf."""

    HIGH = "high"
    MEDIUM = "medium"
    NULL = "null"


def parse_grade(text: str) -> Grade:
    """The grade of a word, in any case of letters. Raises BadValueError.

    Suites of the grades low and export left the library years ago: they mean medium (Postfix 3.8).
    """
    word = text.lower()
    if word in {"low", "export"}:
        return Grade.MEDIUM
    try:
        return Grade(word)
    except ValueError as exc:
        raise BadValueError(
            f'"{text[:100]}" is no cipher grade', "high, medium, low, export or null"
        ) from exc


def parse_exclusions(text: str) -> tuple[str, ...]:
    """The words of a list of exclusions; each will become `!word`. Raises BadValueError.

    A word that the library does not know excludes nothing, as in Postfix: old names must do no
    harm.
    """
    words = tuple(filter(None, _SEPARATORS.split(text)))
    for word in words:
        if not _TOKEN.fullmatch(word):
            raise BadValueError(
                f'"{word[:100]}" cannot be excluded', "names of ciphers without ! + - or @ in front"
            )
    return words


@dataclass(frozen=True, slots=True, kw_only=True)
class CipherLists:
    """What stands behind the grades. Comments name the parameters."""

    high: str  # tls_high_cipherlist
    medium: str  # tls_medium_cipherlist
    null: str  # tls_null_cipherlist
    allow_null: bool = False  # postrio_tls_allow_null

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Read the parameters; `parse_list` finds out whether they can be used."""
        return cls(
            high=config.text("tls_high_cipherlist"),
            medium=config.text("tls_medium_cipherlist"),
            null=config.text("tls_null_cipherlist"),
            allow_null=config.boolean("postrio_tls_allow_null"),
        )

    def check(self, grade: Grade) -> Grade:
        """The grade, if it is allowed here; else BadValueError."""
        if grade is Grade.NULL and not self.allow_null:
            raise BadValueError(
                "with the cipher grade null mail is not encrypted",
                "another grade, or postrio_tls_allow_null = yes",
            )
        return grade

    def suites(self, grade: Grade, level: Level, exclude: tuple[str, ...]) -> str:
        """OpenSSL's list for a policy. Raises BadValueError if the library finds no suite in it.

        Anonymous suites: only where nothing must be proved. Suites without encryption: only in the
        grade null, and not where encryption is what was asked for.
        """
        self.check(grade)
        base = {Grade.HIGH: self.high, Grade.MEDIUM: self.medium, Grade.NULL: self.null}[grade]
        words = [word for word in _SEPARATORS.split(base) if word]
        words += [f"!{word}" for word in exclude]
        if level.authenticated:
            words.append("!aNULL")
        if grade is not Grade.NULL or level is Level.ENCRYPT:
            words.append("!eNULL")
        text = ":".join(words)
        if not _has_suites(text):
            excluded = f" without {', '.join(exclude)}" if exclude else ""
            raise BadValueError(
                f"no cipher suite is left of grade {grade.value}{excluded} at level {level.word}",
                "fewer exclusions, or another grade",
            )
        return text


def parse_list(text: str) -> str:
    """A list of OpenSSL as it is, if the library finds a suite in it; else BadValueError."""
    words = [word for word in _SEPARATORS.split(text) if word]
    for word in words:
        # The library would stop reading there, and say nothing.
        if not _COMMAND.fullmatch(word):
            raise BadValueError(f'"{word[:100]}" is no cipher', "a list as of openssl-ciphers(1)")
    if not _has_suites(":".join(words)):
        raise BadValueError(
            "OpenSSL knows no suite of this list", "a list as of openssl-ciphers(1)"
        )
    return text


@lru_cache(256)
def _has_suites(text: str) -> bool:
    # Without a word on OpenSSL's security level `contexts.py` chooses it; 0 shows all suites.
    if "@SECLEVEL" not in text:
        text += ":@SECLEVEL=0"
    try:
        SSL.Context(SSL.TLS_CLIENT_METHOD).set_cipher_list(text.encode("ascii", "replace"))
    except SSL.Error:
        return False
    return True
