"""Parameters of MAIL and RCPT, and XFORWARD: only what was announced, only what is valid."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.capabilities import Capabilities
from protocol.command import Mail, Rcpt, Xforward
from protocol.envelope_parameters import mail_parameters, rcpt_parameters, xforward_commands
from protocol.request import (
    ClientFacts,
    DeliveryRequest,
    Notify,
    Protocol,
    Recipient,
    Ret,
    SendOptions,
)

ALL = Capabilities(
    eightbitmime=True,
    smtputf8=True,
    dsn=True,
    size_announced=True,
    xforward=frozenset({"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"}),
)
REQUEST = DeliveryRequest(
    queue_id="A1",
    transport="smtp",
    protocol=Protocol.SMTP,
    nexthop="x",
    sender="a@b",
    recipients=(Recipient(address="c@d"),),
    size=1000,
    encoding="8bit",
    options=SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_HEADER,
    envelope_id="QQ 314",
    ret=Ret.HDRS,
)


def test_s079_everything_that_was_announced_is_sent_with_mail() -> None:
    assert mail_parameters(REQUEST, ALL) == (
        "SIZE=1000",
        "BODY=8BITMIME",
        "SMTPUTF8",
        "RET=HDRS",
        "ENVID=QQ+20314",
    )


def test_nothing_that_was_not_announced_is_sent() -> None:
    assert mail_parameters(REQUEST, Capabilities()) == ()
    recipient = Recipient(address="c@d", orcpt="rfc822;x@y", notify=Notify.NEVER)
    assert rcpt_parameters(recipient, Capabilities()) == ()
    assert xforward_commands(ClientFacts(name="x"), Capabilities()) == ()


@pytest.mark.parametrize(
    ("encoding", "params"), [("7bit", ("BODY=7BIT",)), ("8bit", ("BODY=8BITMIME",)), ("", ())]
)
def test_s078_body_follows_the_stored_encoding(encoding: str, params: tuple[str, ...]) -> None:
    request = replace(REQUEST, encoding=encoding)
    assert mail_parameters(request, Capabilities(eightbitmime=True)) == params


@pytest.mark.parametrize(
    "options",
    [SendOptions.NONE, SendOptions.SMTPUTF8_REQUESTED, SendOptions.UTF8_HEADER],
)
def test_smtputf8_is_sent_only_where_it_is_requested_and_needed(options: SendOptions) -> None:
    assert "SMTPUTF8" not in mail_parameters(replace(REQUEST, options=options), ALL)


def test_s077_an_unknown_size_is_not_announced_and_a_better_one_is() -> None:
    announced = Capabilities(size_announced=True)
    assert mail_parameters(REQUEST, announced, 0) == ()
    assert mail_parameters(REQUEST, announced, 1234) == ("SIZE=1234",)
    assert mail_parameters(replace(REQUEST, size=0), announced) == ()


def test_what_the_sender_did_not_say_is_not_sent() -> None:
    request = replace(REQUEST, envelope_id="", ret=Ret.UNSPECIFIED)
    assert mail_parameters(request, Capabilities(dsn=True)) == ()


@pytest.mark.parametrize("envelope_id", ["x" * 101, "é" * 20, "\ud800"])
def test_s201_an_envelope_id_that_has_no_valid_form_is_left_out(envelope_id: str) -> None:
    request = replace(REQUEST, envelope_id=envelope_id, ret=Ret.FULL)
    assert mail_parameters(request, Capabilities(dsn=True)) == ("RET=FULL",)


@pytest.mark.parametrize(
    ("recipient", "params"),
    [
        (Recipient(address="c@d"), ("ORCPT=rfc822;c@d",)),
        (Recipient(address="c@d", original="a+b@x"), ("ORCPT=rfc822;a+2Bb@x",)),
        (Recipient(address="a b@d"), ('ORCPT=rfc822;"a+20b"@d',)),
        (Recipient(address="c@d", orcpt="rfc822;x y@z"), ("ORCPT=rfc822;x+20y@z",)),
        (Recipient(address="c@d", orcpt="utf-8;jörg@z"), (r"ORCPT=utf-8;j\x{F6}rg@z",)),
        (Recipient(address="jörg@d"), (r"ORCPT=utf-8;j\x{F6}rg@d",)),
        (Recipient(address="c@d", orcpt="x400;/c=de/"), ("ORCPT=x400;/c+3Dde/",)),
        (Recipient(address="c@d", orcpt="b ad;x"), ()),
        (Recipient(address="c@d", orcpt="rfc822;"), ()),
        (Recipient(address="c@d", orcpt="rfc822;" + "x" * 500), ()),
        (Recipient(address="c@d", orcpt="utf-8;\udcff"), ()),
        (Recipient(address="c@d", notify=Notify.NEVER), ("NOTIFY=NEVER", "ORCPT=rfc822;c@d")),
        (
            Recipient(address="c@d", notify=Notify.SUCCESS | Notify.FAILURE | Notify.DELAY),
            ("NOTIFY=SUCCESS,FAILURE,DELAY", "ORCPT=rfc822;c@d"),
        ),
    ],
)
def test_s079_dsn_parameters_of_a_recipient(recipient: Recipient, params: tuple[str, ...]) -> None:
    assert rcpt_parameters(recipient, ALL) == params


def test_s075_client_facts_go_out_in_two_commands() -> None:
    client = ClientFacts(name="host", address="192.0.2.1", protocol="ESMTP", ident="A1")
    assert xforward_commands(client, ALL) == (
        Xforward((("NAME", "host"), ("ADDR", "192.0.2.1"), ("PORT", ""))),
        Xforward((("PROTO", "ESMTP"), ("HELO", ""), ("IDENT", "A1"), ("SOURCE", "REMOTE"))),
    )
    assert xforward_commands(ClientFacts(), Capabilities(xforward=frozenset({"SOURCE"}))) == (
        Xforward((("SOURCE", "LOCAL"),)),
    )


@given(st.text(), st.text(), st.text())
def test_whatever_the_texts_the_commands_can_be_sent(envid: str, orcpt: str, address: str) -> None:
    request = replace(REQUEST, envelope_id=envid)
    assert Mail("a@b", mail_parameters(request, ALL)).to_wire()
    recipient = Recipient(address=address, orcpt=orcpt)
    assert Rcpt("c@d", rcpt_parameters(recipient, ALL)).to_wire()
