"""GSSAPI with a library that a test plays, and without any."""

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.sasl.mechanism import Login, SaslError
from protocol.sasl.mechanisms import Merit, Proof, choose, lacking, make, proof_of
from protocol.sasl.secret import Secret
from tests.unit.fake_gssapi import OFFER, FakeGssapi

LOGIN = Login(user="u", secret=Secret(""), host="mx.example")
NONE = Merit.NONE


def test_the_exchange_is_that_of_rfc_4752(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeGssapi().install(monkeypatch)
    mechanism = make("GSSAPI", LOGIN)
    assert mechanism.begin() == b"AP-REQ"
    assert mechanism.respond(b"AP-REP") == b""
    before = mechanism.complete
    assert mechanism.respond(b"wrapped offer") == b"wrapped \x01\0\0\0"
    assert (before, mechanism.complete) == (False, True)
    assert library.seen == [
        {
            "name": ("smtp@mx.example", "hostbased"),
            "mech": "kerberos",
            "flags": ["mutual", "integrity"],
            "usage": "initiate",
        },
        None,
        b"AP-REP",
        b"\x01\0\0\0",
    ]
    with pytest.raises(SaslError, match="asks for more than GSSAPI has to say"):
        mechanism.respond(b"wrapped offer")


def test_lmtp_has_a_service_of_its_own_and_the_authorization_identity_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = FakeGssapi(tokens=(b"1", b"2", b"3")).install(monkeypatch)
    who = Login(user="u", secret=Secret(""), host="h", service="lmtp", authzid="j\xf6rg")
    mechanism = make("GSSAPI", who)
    assert [mechanism.begin(), mechanism.respond(b"a"), mechanism.respond(b"b")] == [
        b"1",
        b"2",
        b"3",
    ]
    assert mechanism.respond(b"wrapped offer") == b"wrapped \x01\0\0\0j\xc3\xb6rg"
    assert library.seen[0]["name"] == ("lmtp@h", "hostbased")


def test_every_step_may_wait_for_others() -> None:
    mechanism = make("GSSAPI", LOGIN)
    assert mechanism.is_slow(None)
    assert mechanism.is_slow(b"")


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        (b"\x06\xff\xff\xff", "insists on a security layer"),
        (b"\0\0\0\0", "insists on a security layer"),
        (b"\x01\0\0", "list of security layers is malformed"),
        (OFFER + b"x", "list of security layers is malformed"),
    ],
)
def test_a_layer_that_is_not_ours_is_refused(
    monkeypatch: pytest.MonkeyPatch, offer: bytes, why: str
) -> None:
    FakeGssapi(offer=offer).install(monkeypatch)
    mechanism = make("GSSAPI", LOGIN)
    mechanism.begin()
    mechanism.respond(b"AP-REP")
    with pytest.raises(SaslError, match=why):
        mechanism.respond(b"wrapped offer")
    assert not mechanism.complete


def test_a_server_that_does_not_prove_itself_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGssapi(mutual=False).install(monkeypatch)
    mechanism = make("GSSAPI", LOGIN)
    mechanism.begin()
    with pytest.raises(SaslError, match="GSSAPI: the server has not proved who it is"):
        mechanism.respond(b"AP-REP")


@pytest.mark.parametrize("failing", ["Name", "step", "unwrap", "wrap"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Major (851968): Unspecified GSS failure.  Minor code may provide more information,"
            " Minor (2529639053): No Kerberos credentials available",
            "GSSAPI: No Kerberos credentials available",
        ),
        (
            "Major (1):\n\x1b[2J no\tminor, Minor (0): ",
            "GSSAPI: Major (1): [2J no minor, Minor (0):",
        ),
        ("x" * 1000, "GSSAPI: " + "x" * 300 + "..."),
    ],
)
def test_what_the_library_says_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, failing: str, said: str, shown: str
) -> None:
    FakeGssapi(failing=failing, failure=said).install(monkeypatch)
    mechanism = make("GSSAPI", LOGIN)
    with pytest.raises(SaslError) as caught:
        _ = mechanism.begin(), mechanism.respond(b"AP-REP"), mechanism.respond(b"wrapped offer")
    assert str(caught.value) == shown
    text = "".join(traceback.format_exception(caught.value))
    assert "GSSError" not in text


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGssapi(tokens=()).install(monkeypatch)
    with pytest.raises(SaslError, match=r"^GSSAPI failed with IndexError$"):
        make("GSSAPI", LOGIN).begin()


@given(st.lists(st.binary(max_size=40) | st.just(b"wrapped offer"), max_size=5))
def test_whatever_a_server_asks_ends_in_answers_or_a_sentence(challenges: Sequence[bytes]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        FakeGssapi().install(monkeypatch)
        mechanism = make("GSSAPI", LOGIN)
        mechanism.begin()
        with suppress(SaslError):
            for challenge in challenges:
                assert isinstance(mechanism.respond(challenge), bytes)


def test_it_comes_after_external_and_is_for_those_who_have_a_ticket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeGssapi().install(monkeypatch)
    offered = ["PLAIN", "GSSAPI", "EXTERNAL"]
    without = (Proof.CERTIFICATE, Proof.TICKET)

    def chosen(demands: Merit = NONE, *, encrypted: bool = True) -> str | None:
        return choose(offered, without, demands, encrypted=encrypted, bindable=False)

    assert proof_of("GSSAPI") is Proof.TICKET
    assert chosen() == "EXTERNAL"
    assert chosen(encrypted=False) == "GSSAPI"
    assert chosen(Merit.MUTUAL_AUTH) == "GSSAPI"
    wanted = Merit.NOPLAINTEXT | Merit.NOACTIVE | Merit.NOANONYMOUS
    assert chosen(wanted, encrypted=False) == "GSSAPI"
    assert chosen(Merit.NODICTIONARY, encrypted=False) is None
    assert lacking(offered, without) == ""
    both = (Proof.PASSWORD, Proof.TOKEN)
    assert choose(offered, both, NONE, encrypted=True, bindable=False) == "PLAIN"


@pytest.mark.parametrize("spec", ["none", "broken"])
def test_without_the_package_it_is_not_there(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.delitem(sys.modules, "gssapi", raising=False)
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        if name == "gssapi" and spec == "broken":
            raise ValueError("gssapi.__spec__ is None")
        return None if name == "gssapi" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    without = (Proof.CERTIFICATE, Proof.TICKET)
    assert choose(["GSSAPI"], without, NONE, encrypted=True, bindable=True) is None
    assert lacking(["GSSAPI"], without) == "GSSAPI needs python-gssapi, postrio's extra gssapi"
    assert lacking(["GSSAPI"], (Proof.PASSWORD,)) == ""
    assert lacking(["PLAIN"], without) == ""


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)  # to import it is an ImportError
    with pytest.raises(SaslError, match="GSSAPI: python-gssapi cannot be loaded: "):
        make("GSSAPI", LOGIN).begin()
