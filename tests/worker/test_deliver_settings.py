"""Each setting of a delivery comes from its parameter, and for LMTP from that parameter's twin."""

from dataclasses import fields, replace

import pytest

from protocol.request import Protocol
from worker.config.config import Config
from worker.delivery.settings import DeliverySettings, Limits

# field: (smtp parameter, lmtp parameter, a text, its value); None: the other has none of its own
SETTINGS: dict[str, tuple[str, str | None, str, object]] = {
    "hostname": ("myhostname", None, "other.example", "other.example"),
    "helo_name": ("smtp_helo_name", "lmtp_lhlo_name", "helo.example", "helo.example"),
    "always_send_ehlo": ("smtp_always_send_ehlo", None, "no", False),
    "never_send_ehlo": ("smtp_never_send_ehlo", None, "yes", True),
    "skip_5xx_greeting": ("smtp_skip_5xx_greeting", "lmtp_skip_5xx_greeting", "no", False),
    "probe_data": ("smtp_address_verify_target", "lmtp_address_verify_target", "data", True),
    "skip_quit_response": ("smtp_skip_quit_response", None, "no", False),
    "quote_envelope": ("smtp_quote_rfc821_envelope", "lmtp_quote_rfc821_envelope", "no", False),
    "mx_session_limit": ("smtp_mx_session_limit", "lmtp_mx_session_limit", "7", 7),
    "discard_keywords": (
        "smtp_discard_ehlo_keywords",
        "lmtp_discard_lhlo_keywords",
        "DSN, silent-discard",
        ("dsn", "silent-discard"),
    ),
    "log_tls": ("smtp_log_tls_feature_status", "lmtp_log_tls_feature_status", "no", False),
    "defer_rcpt_552": ("postrio_defer_rcpt_552", None, "yes", True),
    "send_xforward": ("smtp_send_xforward_command", "lmtp_send_xforward_command", "yes", True),
    "reuse_time_limit": (
        "smtp_connection_reuse_time_limit",
        "lmtp_connection_reuse_time_limit",
        "1m",
        60.0,
    ),
    "reuse_count_limit": (
        "smtp_connection_reuse_count_limit",
        "lmtp_connection_reuse_count_limit",
        "9",
        9,
    ),
}
LIMITS: dict[str, tuple[str, str | None, str, object]] = {
    "helo": ("smtp_helo_timeout", "lmtp_lhlo_timeout", "11s", 11.0),
    "starttls": ("smtp_starttls_timeout", "lmtp_starttls_timeout", "11s", 11.0),
    "xforward": ("smtp_xforward_timeout", "lmtp_xforward_timeout", "12s", 12.0),
    "mail": ("smtp_mail_timeout", "lmtp_mail_timeout", "13s", 13.0),
    "rcpt": ("smtp_rcpt_timeout", "lmtp_rcpt_timeout", "14s", 14.0),
    "data_init": ("smtp_data_init_timeout", "lmtp_data_init_timeout", "15s", 15.0),
    "data_xfer": ("smtp_data_xfer_timeout", "lmtp_data_xfer_timeout", "16s", 16.0),
    "data_done": ("smtp_data_done_timeout", "lmtp_data_done_timeout", "17s", 17.0),
    "rset": ("smtp_rset_timeout", "lmtp_rset_timeout", "18s", 18.0),
    "quit": ("smtp_quit_timeout", "lmtp_quit_timeout", "19s", 19.0),
    "whole_request": (
        "smtp_per_request_deadline",
        "lmtp_per_request_deadline",
        "yes",
        True,
    ),
    "min_data_rate": ("smtp_min_data_rate", "lmtp_min_data_rate", "77", 77),
}


def read(mapping: dict[str, str], protocol: Protocol) -> DeliverySettings:
    return DeliverySettings.from_config(Config.from_mapping(mapping), protocol)


@pytest.mark.parametrize("protocol", Protocol)
def test_the_defaults_are_those_of_the_parameters(protocol: Protocol) -> None:
    expected = DeliverySettings(
        protocol=protocol, hostname="client.example", helo_name="client.example"
    )
    if protocol is Protocol.LMTP:
        expected = replace(expected, skip_quit_response=False)
    assert replace(read({}, protocol), fingerprint="") == expected


@pytest.mark.parametrize("field", [*SETTINGS, *LIMITS])
def test_each_setting_has_its_parameter(field: str) -> None:
    smtp, lmtp, text, value = {**SETTINGS, **LIMITS}[field]

    def of(settings: DeliverySettings) -> object:
        owner = settings.limits if field in LIMITS else settings
        return getattr(owner, field)

    assert of(read({smtp: text}, Protocol.SMTP)) == value
    assert of(read({}, Protocol.SMTP)) != value
    if lmtp is not None:
        assert of(read({lmtp: text}, Protocol.LMTP)) == value
        assert of(read({lmtp: text}, Protocol.SMTP)) != value
        assert of(read({smtp: text}, Protocol.LMTP)) != value or field == "helo_name"


def test_the_quit_reply_is_skipped_in_smtp_only_unless_set() -> None:
    assert not read({"smtp_skip_quit_response": "yes"}, Protocol.LMTP).skip_quit_response
    assert read({"lmtp_skip_quit_response": "yes"}, Protocol.LMTP).skip_quit_response


@pytest.mark.parametrize("protocol", Protocol)
def test_the_keyword_table_is_read_by_protocol(protocol: Protocol) -> None:
    name = {
        Protocol.SMTP: "smtp_discard_ehlo_keyword_address_maps",
        Protocol.LMTP: "lmtp_discard_lhlo_keyword_address_maps",
    }[protocol]
    settings = read({name: "static:dsn"}, protocol)
    assert [table.spec for table in settings.discard_maps.tables] == ["static:dsn"]
    other = Protocol.LMTP if protocol is Protocol.SMTP else Protocol.SMTP
    assert not read({name: "static:dsn"}, other).discard_maps


def test_s093_the_sender_counts_only_where_there_is_a_log_in() -> None:
    by_sender = {"smtp_sender_dependent_authentication": "yes"}
    assert not read(by_sender, Protocol.SMTP).by_sender
    login = by_sender | {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": "static:a:b",
        "lmtp_sasl_auth_enable": "yes",
        "lmtp_sasl_password_maps": "static:a:b",
    }
    assert read(login, Protocol.SMTP).by_sender
    assert not read(login, Protocol.LMTP).by_sender


def test_no_setting_is_forgotten_here() -> None:
    known = {*SETTINGS, "protocol", "limits", "discard_maps", "by_sender", "fingerprint", "content"}
    known |= {"pix", "status_filter"}
    assert {field.name for field in fields(DeliverySettings)} == known
    assert {field.name for field in fields(Limits)} == set(LIMITS)


def test_settings_read_twice_are_equal_so_that_sessions_survive_a_reload() -> None:
    assert read({}, Protocol.SMTP) == read({}, Protocol.SMTP)
