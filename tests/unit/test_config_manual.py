"""The table is complete, its defaults are legal, and the reference was written from it."""

from pathlib import Path

import pytest

from worker.config.config import Config
from worker.config.manual import MAN_PAGE, PARAMETERS_MD, SECTIONS, main, man_page, markdown
from worker.config.parameters import PARAMETERS, Kind, Parameter

TOP = Path(__file__).parents[2]

EVERY = pytest.mark.parametrize("row", PARAMETERS.values(), ids=PARAMETERS)


@EVERY
def test_every_parameter_has_a_sentence_and_a_known_source(row: Parameter) -> None:
    assert row.summary[0].isupper() or row.summary.startswith("postrio")
    assert row.summary.endswith(".")
    assert row.source == "postrio" or row.source.startswith("Postfix ")
    assert row.name.startswith("postrio_") is (row.source == "postrio")


def test_every_default_is_legal() -> None:
    config = Config.from_mapping({})  # all are checked on the way
    assert config.warnings == ()


@EVERY
def test_every_default_can_be_set_explicitly(row: Parameter) -> None:
    if row.read_only or row.name in {"myhostname", "mydomain"}:
        return
    config = Config.from_mapping({row.name: row.default})
    if row.kind is not Kind.TABLES:
        assert config.text(row.name) == Config.from_mapping({}).text(row.name)


@EVERY
def test_every_smtp_parameter_has_a_twin_but_for_the_known_ones(row: Parameter) -> None:
    if not row.name.startswith("smtp_") or "destination" in row.name or "transport" in row.name:
        return
    if row.name in {
        *("smtp_always_send_ehlo", "smtp_never_send_ehlo", "smtp_skip_4xx_greeting"),
        "smtp_tls_cipherlist",
    }:
        assert row.mirror is None
    else:
        assert row.mirror is not None
        assert row.mirror.name in PARAMETERS


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("lmtp_connect_timeout", "0s"),
        ("lmtp_skip_quit_response", "no"),
        ("lmtp_fallback_relay", ""),
        ("lmtp_tcp_port", "24"),
        ("lmtp_lhlo_name", "$myhostname"),
        ("lmtp_tls_security_level", ""),
        ("lmtp_tls_secure_cert_match", "nexthop"),
        ("lmtp_tls_eckey_file", "$lmtp_tls_eccert_file"),
        ("lmtp_per_request_deadline", "$lmtp_per_record_deadline"),
        ("lmtp_destination_recipient_limit", "$default_destination_recipient_limit"),
    ],
)
def test_twins_have_their_own_defaults(name: str, default: str) -> None:
    assert PARAMETERS[name].default == default


@pytest.mark.parametrize("name", ["lmtp_helo_timeout", "lmtp_helo_name", "lmtp_always_send_ehlo"])
def test_names_that_postfix_does_not_have_are_not_made_up(name: str) -> None:
    assert name not in PARAMETERS


def test_every_row_is_in_one_section_of_the_reference() -> None:
    shown = [row.name for _, rows in SECTIONS for row in rows]
    assert len(shown) == len(set(shown))
    twins = {row.mirror.name for row in PARAMETERS.values() if row.mirror is not None}
    patterned = {name for name in PARAMETERS if name not in shown and name not in twins}
    assert all(PARAMETERS[name].summary.startswith("As ") for name in patterned)


def test_the_reference_is_the_one_written_from_the_table() -> None:
    again = "run python -m worker.config.manual"
    assert (TOP / PARAMETERS_MD).read_text(encoding="utf-8") == markdown(), again
    assert (TOP / MAN_PAGE).read_text(encoding="utf-8") == man_page(), again


def test_the_reference_names_every_parameter_with_its_default(tmp_path: Path) -> None:
    main(tmp_path)
    for text in (
        (tmp_path / PARAMETERS_MD).read_text(encoding="utf-8").replace("\\", ""),
        (tmp_path / MAN_PAGE).read_text(encoding="utf-8").replace("\\", ""),
    ):
        for name in PARAMETERS:
            transport, _, rest = name.partition("_")
            generic = f"default_{rest}" if transport in {"smtp", "lmtp"} else name
            assert name in text or generic in text or rest in text
