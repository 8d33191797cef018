"""python-gssapi as far as postrio calls it, with a context that says what a test wants."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

OFFER = b"\x07\xff\xff\xff"  # every layer, as Dovecot and Cyrus offer them


class GSSError(Exception):
    """What the library raises."""


@dataclass
class FakeGssapi:
    """One installed library; `tokens`: what each step gives, and the last completes the context."""

    tokens: Sequence[bytes | None] = (b"AP-REQ", None)
    offer: bytes = OFFER
    mutual: bool = True
    failure: str = ""  # of `failing`
    failing: str = "step"  # or "Name", "unwrap", "wrap"
    seen: list[Any] = field(default_factory=list)  # names, tokens, and what was wrapped
    threads: set[int] = field(default_factory=set)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeGssapi":
        module = ModuleType("gssapi")
        contents = {
            "exceptions": SimpleNamespace(GSSError=GSSError),
            "NameType": SimpleNamespace(hostbased_service="hostbased"),
            "MechType": SimpleNamespace(kerberos="kerberos"),
            "RequirementFlag": SimpleNamespace(
                mutual_authentication="mutual", integrity="integrity"
            ),
            "Name": self._name,
            "SecurityContext": lambda **asked: _Context(self, asked),
        }
        for name, value in contents.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "gssapi", module)
        return self

    def does(self, what: str) -> None:
        """Called at each step of the library. Raises GSSError if it is to fail there."""
        self.threads.add(threading.get_ident())
        if self.failure and self.failing == what:
            raise GSSError(self.failure)

    def _name(self, text: str, kind: str) -> tuple[str, str]:
        self.does("Name")
        return text, kind


class _Context:
    def __init__(self, library: FakeGssapi, asked: dict[str, Any]) -> None:
        self._library = library
        self._left = list(library.tokens)
        self.complete = False
        self.actual_flags = {"integrity", "mutual"} if library.mutual else {"integrity"}
        library.seen.append(asked)

    def step(self, token: bytes | None) -> bytes | None:
        self._library.does("step")
        self._library.seen.append(token)
        answer = self._left.pop(0)
        self.complete = not self._left
        return answer

    def unwrap(self, message: bytes) -> SimpleNamespace:
        self._library.does("unwrap")
        if message != b"wrapped offer":
            raise GSSError("Major (393216): A token had an invalid MIC, Minor (100004): Bad MIC")
        return SimpleNamespace(message=self._library.offer)

    def wrap(self, message: bytes, encrypt: bool) -> SimpleNamespace:
        self._library.does("wrap")
        assert not encrypt
        self._library.seen.append(message)
        return SimpleNamespace(message=b"wrapped " + message)
