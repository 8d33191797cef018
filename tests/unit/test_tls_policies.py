"""From main.cf and its tables to the policy for a server."""

import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.request import Protocol
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.config.tables import TableError
from worker.tls.policies import TlsPolicies, TlsPolicyError
from worker.tls.policy import PLAINTEXT, Anchors, Identity, Level, TlsPolicy, Version

T = TypeVar("T")
SHA256 = "ab" * 32
MODERN = frozenset({Version.TLSV1_2, Version.TLSV1_3})
SWITCHES = ("smtp_use_tls", "smtp_enforce_tls", "smtp_tls_enforce_peername")


def finish(coroutine: Coroutine[object, object, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    result: T = stopped.value.value
    return result


def policies(
    settings: dict[str, str] | None = None, protocol: Protocol = Protocol.SMTP
) -> TlsPolicies:
    return TlsPolicies.from_config(Config.from_mapping(settings or {}), protocol)


def policy(
    settings: dict[str, str],
    nexthop: str = "a.example",
    host: str = "mx.example",
    protocol: Protocol = Protocol.SMTP,
    *,
    unix: bool = False,
) -> TlsPolicy:
    return finish(policies(settings, protocol).policy(nexthop, host, unix=unix))


def with_entry(text: str, **settings: str) -> dict[str, str]:
    """A configuration whose policy maps hold this text for every key."""
    return settings | {"smtp_tls_policy_maps": f"static:{{{text}}}"}


def refusal(settings: dict[str, str], nexthop: str = "a.example") -> str:
    with pytest.raises(TlsPolicyError) as caught:
        policy(settings, nexthop)
    assert caught.value.dsn == "4.7.5"
    assert caught.value.reason == "client TLS configuration problem"
    return str(caught.value)


def problems(settings: dict[str, str], protocol: Protocol = Protocol.SMTP) -> str:
    with pytest.raises(ConfigError) as caught:
        policies(settings, protocol)
    return str(caught.value)


# --- the level of main.cf ------------------------------------------------------------------------


def test_without_any_setting_smtp_takes_what_is_offered_and_lmtp_asks_for_nothing() -> None:
    assert policy({}).level is Level.MAY
    assert policy({}, protocol=Protocol.LMTP) == PLAINTEXT


@pytest.mark.parametrize("level", Level)
def test_a_level_that_is_set_wins_over_the_switches_before_it(level: Level) -> None:
    digest = {"smtp_tls_fingerprint_cert_match": SHA256}
    for switches in itertools.product(["yes", "no"], repeat=3):
        settings = dict(zip(SWITCHES, switches, strict=True)) | digest
        assert policy(settings | {"smtp_tls_security_level": level.word}).level is level


@pytest.mark.parametrize("use", [None, "no", "yes"])
@pytest.mark.parametrize("enforce", [None, "no", "yes"])
@pytest.mark.parametrize("peername", [None, "no", "yes"])
@pytest.mark.parametrize("level", [None, ""])
def test_s126_where_no_level_is_set_the_switches_before_it_decide(
    use: str | None, enforce: str | None, peername: str | None, level: str | None
) -> None:
    if enforce == "yes":
        expected = Level.ENCRYPT if peername == "no" else Level.VERIFY
    elif use is not None:
        expected = Level.MAY if use == "yes" else Level.NONE
    else:  # nothing about the level was said: ours; an empty one asks for Postfix's rule
        expected = Level.MAY if level is None else Level.NONE
    for prefix, protocol in (("smtp", Protocol.SMTP), ("lmtp", Protocol.LMTP)):
        settings = dict(
            zip(
                [name.replace("smtp", prefix) for name in (*SWITCHES, "smtp_tls_security_level")],
                (use, enforce, peername, level),
                strict=True,
            )
        )
        found = policy({k: v for k, v in settings.items() if v is not None}, protocol=protocol)
        if protocol is Protocol.LMTP and level is None and use is None and enforce != "yes":
            assert found.level is Level.NONE  # the default of that level is empty
        else:
            assert found.level is expected


@pytest.mark.parametrize("name", SWITCHES)
def test_s128_a_former_switch_leads_to_one_warning(name: str) -> None:
    config = Config.from_mapping({name: "yes"})
    (warning,) = config.warnings
    assert f"{name} is deprecated: use smtp_tls_security_level" in warning
    assert TlsPolicies.from_config(config, Protocol.SMTP).warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        *("smtp_tls_cipherlist", "smtp_tls_dcert_file", "smtp_tls_dkey_file"),
        *("tls_low_cipherlist", "tls_export_cipherlist", "tls_daemon_random_bytes"),
        "smtp_tls_block_early_mail_reply",
    ],
)
def test_s130_what_has_no_effect_changes_nothing(name: str) -> None:
    value = {"tls_daemon_random_bytes": "64", "smtp_tls_block_early_mail_reply": "yes"}
    settings = {"smtp_tls_security_level": "secure"}
    assert policy(settings | {name: value.get(name, "x")}) == policy(settings)


def test_dane_stops_the_start_because_less_would_be_done() -> None:
    for level in ("dane", "dane-only"):
        text = problems({"smtp_tls_security_level": level})
        assert f'configuration: smtp_tls_security_level = {level}: the security level "' in text
        assert "is not supported yet; expected none, may, encrypt" in text


# --- keys of the policy maps ---------------------------------------------------------------------

TABLE = {
    "smtp_tls_policy_maps": "inline:{ a.example=encrypt, .a.example=verify, .example=secure,"
    " [a.example]=none, {[a.example]:587 = encrypt ciphers=high}, a.example:587=none,"
    " 192.0.2.1=encrypt, [192.0.2.1]=verify, [ipv6:2001:db8::1]=encrypt,"
    " xn--bcher-kva.test=encrypt, .xn--p1ai=verify, /var/run/x=encrypt, private/x=verify }"
}


@pytest.mark.parametrize(
    ("nexthop", "level"),
    [
        ("a.example", Level.ENCRYPT),
        ("A.EXAMPLE", Level.ENCRYPT),
        ("a.example.", Level.ENCRYPT),
        ("b.a.example", Level.VERIFY),
        ("c.b.a.example", Level.VERIFY),
        ("other.example", Level.SECURE),
        ("example", Level.MAY),  # ".example" is what lies below
        ("[a.example]", Level.NONE),
        ("[b.a.example]", Level.MAY),  # no parents of what was written with brackets
        ("[a.example]:587", Level.ENCRYPT),
        ("[a.example]:588", Level.MAY),
        ("a.example:587", Level.NONE),
        ("b.a.example:587", Level.MAY),
        ("[192.0.2.1]", Level.VERIFY),
        ("[IPv6:2001:db8::1]", Level.ENCRYPT),
        ("[2001:db8::1]", Level.MAY),  # verbatim
        ("bücher.test", Level.ENCRYPT),
        ("БЮРО.рф", Level.VERIFY),
        # What lies below a domain is whatever DNS may find there.
        ("-b.a.example", Level.VERIFY),
        ("b-.c.a.example", Level.VERIFY),
        ("$b.a.example", Level.VERIFY),
        ("*.a.example", Level.VERIFY),
        ("c。b。a。example", Level.VERIFY),  # IDNA knows more dots than one
        ("c。b.a.example", Level.VERIFY),
        ("x。a。рф", Level.VERIFY),
        ("a.example。", Level.ENCRYPT),
    ],
)
def test_s100_a_nexthop_is_found_as_written_and_a_bare_domain_by_its_parents_too(
    nexthop: str, level: Level
) -> None:
    assert policy(TABLE, nexthop).level is level


@pytest.mark.parametrize(
    ("nexthop", "level"),
    [
        ("inet:a.example", Level.ENCRYPT),
        ("a.example", Level.ENCRYPT),
        ("inet:b.a.example", Level.VERIFY),
        ("inet:[a.example]:587", Level.ENCRYPT),
        ("192.0.2.1", Level.ENCRYPT),
        ("inet:192.0.2.1", Level.ENCRYPT),
        ("inet:[192.0.2.1]", Level.VERIFY),
        ("unix:/var/run/x", Level.ENCRYPT),
        ("unix:private/x", Level.VERIFY),
        ("unix:private/y", Level.NONE),
    ],
)
def test_the_socket_type_of_an_lmtp_nexthop_is_no_part_of_the_key(
    nexthop: str, level: Level
) -> None:
    settings = {"lmtp_tls_policy_maps": TABLE["smtp_tls_policy_maps"]}
    assert policy(settings, nexthop, protocol=Protocol.LMTP).level is level


def test_a_more_specific_entry_in_another_form_comes_before_a_parents() -> None:
    maps = {"smtp_tls_policy_maps": "inline:{ xn--bcher-kva.example=encrypt, .example=none }"}
    assert policy(maps, "bücher.example").level is Level.ENCRYPT


def test_the_first_table_that_has_a_key_decides_and_one_in_trouble_is_no_answer() -> None:
    maps = "inline:{a.example=encrypt} fail:broken"
    assert policy({"smtp_tls_policy_maps": maps}).level is Level.ENCRYPT
    with pytest.raises(StopIteration):
        policies({"smtp_tls_policy_maps": maps}).policy("a.example", "mx.example").send(None)
    with pytest.raises(TableError, match="fail:broken"):
        policies({"smtp_tls_policy_maps": maps}).policy("b.example", "mx.example").send(None)


@pytest.mark.parametrize("nexthop", ["[a], [b]", "a b", "[a", "unix:/x", "[ipv6:x]", "", "a:0"])
def test_what_is_not_one_destination_has_no_policy(nexthop: str) -> None:
    assert "destination" in refusal({}, nexthop)


def test_a_changed_table_counts_at_once(tmp_path: Path) -> None:
    file, now = tmp_path / "policy", 0.0
    file.write_text("a.example encrypt\n")
    config = Config.load(
        None,
        [f"smtp_tls_policy_maps=texthash:{file}"],
        environ={"MAIL_CONFIG": ""},
        clock=lambda: now,
    )
    found = TlsPolicies.from_config(config, Protocol.SMTP)
    assert finish(found.policy("a.example", "mx.example")).level is Level.ENCRYPT
    file.write_text("a.example verify protocols=TLSv1.3\n")
    now = 10.0
    assert finish(found.policy("a.example", "mx.example")).level is Level.VERIFY


def test_a_broken_entry_defers_and_is_named_with_its_key() -> None:
    settings = {"smtp_tls_policy_maps": "inline:{ {.example = secure mtach=x} }"}
    assert refusal(settings) == (
        'smtp_tls_policy_maps, next-hop destination ".example": invalid attribute name: "mtach";'
        " expected protocols, ciphers, exclude, match, servername, tafile, connection_reuse,"
        " wrappermode, enable_rpk, policy_failure"
    )
    assert 'the security level "dane" is not supported yet' in refusal(with_entry("dane"))
    # Not even where the rest of main.cf would be enough.
    assert refusal(with_entry("", smtp_tls_security_level="secure"))


# --- what an entry changes -----------------------------------------------------------------------


def test_s110_versions_and_ciphers_of_main_cf_differ_between_may_and_what_must_be() -> None:
    settings = {
        "smtp_tls_protocols": ">=TLSv1.1",
        "smtp_tls_mandatory_protocols": "TLSv1.3",
        "smtp_tls_ciphers": "medium",
        "smtp_tls_mandatory_ciphers": "high",
        "smtp_tls_exclude_ciphers": "AES128",
        "smtp_tls_mandatory_exclude_ciphers": "CAMELLIA",
        "tls_medium_cipherlist": "MEDIUM:HIGH",
        "tls_high_cipherlist": "HIGH",
    }
    may = policy(settings | {"smtp_tls_security_level": "may"})
    assert may.versions == {Version.TLSV1_1, Version.TLSV1_2, Version.TLSV1_3}
    assert may.ciphers == "MEDIUM:HIGH:!AES128:!eNULL"
    encrypt = policy(settings | {"smtp_tls_security_level": "encrypt"})
    assert encrypt.versions == {Version.TLSV1_3}
    assert encrypt.ciphers == "HIGH:!AES128:!CAMELLIA:!eNULL"
    secure = policy(settings | {"smtp_tls_security_level": "secure"})
    assert secure.ciphers == "HIGH:!AES128:!CAMELLIA:!aNULL:!eNULL"


def test_defaults_of_versions_and_ciphers() -> None:
    assert policy({}).versions == set(Version)
    assert policy({"smtp_tls_security_level": "encrypt"}).versions == MODERN
    assert policy({}).ciphers.startswith("aNULL:-aNULL:HIGH:MEDIUM:!SEED:")


def test_an_entrys_exclusions_stand_in_place_of_main_cfs() -> None:
    settings = {"smtp_tls_exclude_ciphers": "AES128", "tls_medium_cipherlist": "HIGH"}
    entry = "encrypt exclude=CAMELLIA:MD5"
    assert policy(with_entry(entry, **settings)).ciphers == "HIGH:!CAMELLIA:!MD5:!eNULL"
    assert policy(with_entry("secure exclude=", **settings)).ciphers == "HIGH:!aNULL:!eNULL"


def test_exclusions_that_leave_nothing_defer_or_stop_the_start() -> None:
    assert "no cipher suite is left of grade medium without ALL" in refusal(
        with_entry("may exclude=ALL")
    )
    text = problems({"smtp_tls_exclude_ciphers": "ALL"})
    assert "smtp_tls_security_level = may: no cipher suite is left" in text


def test_s115_the_grade_null_needs_a_parameter_of_its_own() -> None:
    null = {"smtp_tls_mandatory_ciphers": "null"}
    assert "postrio_tls_allow_null = yes" in problems(null)
    assert "postrio_tls_allow_null = yes" in refusal(with_entry("secure ciphers=null"))
    allowed = null | {"postrio_tls_allow_null": "yes", "smtp_tls_security_level": "secure"}
    assert policy(allowed).ciphers == "eNULL:!aNULL:!aNULL"


def test_a_digest_of_an_entry_stands_in_place_of_main_cfs() -> None:
    settings = {"smtp_tls_fingerprint_cert_match": f"{SHA256}, {'CD:' * 31}CD"}
    main = policy(settings | {"smtp_tls_security_level": "fingerprint"})
    assert main.match == (SHA256, "cd" * 32)
    assert main.servername == ""
    entry = policy(with_entry(f"fingerprint match={'ef' * 32}|{'01' * 32}", **settings))
    assert entry.match == ("ef" * 32, "01" * 32)


def test_s120_digests_are_read_with_the_algorithm_of_main_cf() -> None:
    settings = {"smtp_tls_fingerprint_digest": "SHA512"}
    entry = policy(with_entry(f"fingerprint match={'ab' * 64}", **settings))
    assert entry.digest == "sha512"
    assert "is no sha512 digest" in refusal(with_entry(f"fingerprint match={SHA256}", **settings))
    assert "smtp_tls_fingerprint_cert_match = ab: " in problems(
        {"smtp_tls_fingerprint_cert_match": "ab"}
    )
    assert 'there is no digest "crc32"' in problems({"smtp_tls_fingerprint_digest": "crc32"})


def test_level_fingerprint_without_a_digest_defers_or_stops_the_start() -> None:
    level = {"smtp_tls_security_level": "fingerprint"}
    assert "with no fingerprints to match" in problems(level)
    assert "with no fingerprints to match" in refusal(with_entry("fingerprint"))
    # With policy maps it may be on purpose: whoever has no entry waits.
    maps = level | {
        "smtp_tls_policy_maps": f"inline:{{ {{a.example=fingerprint match={SHA256}}} }}"
    }
    assert policy(maps).match == (SHA256,)
    assert "with no fingerprints to match" in refusal(maps, "b.example")
    (warning,) = policies(maps).warnings
    assert "mail without a policy of its own waits" in warning


@pytest.mark.parametrize(
    ("level", "more", "nexthop", "match", "servername"),
    [
        ("verify", {}, "a.example", ("mx.example",), "mx.example"),
        ("secure", {}, "a.example", ("a.example", ".a.example"), "a.example"),
        ("secure", {}, "[A.Example]:587", ("a.example", ".a.example"), "a.example"),
        ("secure", {}, "[192.0.2.1]", ("192.0.2.1", ".192.0.2.1"), ""),
        ("may", {}, "a.example", (), ""),
        ("encrypt", {}, "a.example", (), ""),
        ("encrypt", {"servername": "hostname"}, "a.example", (), "mx.example"),
        ("may", {"servername": "nexthop"}, "[a.example]:25", (), "a.example"),
        ("may", {"servername": "nexthop"}, "[192.0.2.1]", (), ""),
        ("verify", {"servername": "x.org"}, "a.example", ("mx.example",), "x.org"),
        (
            *("verify", {"verify_cert_match": "nexthop: .x.org"}),
            *("a.example", ("a.example", ".x.org"), "mx.example"),
        ),
        (
            *("secure", {"secure_cert_match": "x.org, dot-nexthop"}),
            *("a.example", ("x.org", ".a.example"), "a.example"),
        ),
    ],
)
def test_s118_names_to_match_and_to_send(
    level: str, more: dict[str, str], nexthop: str, match: tuple[str, ...], servername: str
) -> None:
    settings = {f"smtp_tls_{name}": text for name, text in more.items()}
    found = policy(settings | {"smtp_tls_security_level": level}, nexthop)
    assert (found.match, found.servername) == (match, servername)


def test_names_of_an_entry_stand_in_place_of_main_cfs() -> None:
    found = policy(with_entry("secure match=x.example:dot-nexthop servername=hostname"))
    assert found.match == ("x.example", ".a.example")
    assert found.servername == "mx.example"
    assert policy(with_entry("may servername=", smtp_tls_servername="x.example")).servername == ""


def test_names_are_in_a_labels() -> None:
    found = policy({"smtp_tls_security_level": "secure"}, "Bücher.example", "MX.example.")
    assert found.match == ("xn--bcher-kva.example", ".xn--bcher-kva.example")
    assert found.servername == "xn--bcher-kva.example"
    found = policy({"smtp_tls_security_level": "verify"}, "a.example", "MX.Bücher.example.")
    assert found.match == ("mx.xn--bcher-kva.example",)
    assert found.servername == "mx.xn--bcher-kva.example"


def test_s118_lmtp_has_the_nexthop_alone_as_its_secure_name() -> None:
    settings = {"lmtp_tls_security_level": "secure"}
    assert policy(settings, protocol=Protocol.LMTP).match == ("a.example",)


@pytest.mark.parametrize("parameter", ["smtp_tls_verify_cert_match", "smtp_tls_secure_cert_match"])
def test_a_list_of_names_that_can_match_nothing_stops_the_start(parameter: str) -> None:
    assert "no name can match" in problems({parameter: ""})
    assert '"*.example" is no name to match' in problems({parameter: "nexthop, *.example"})


# --- wrapper mode, UNIX sockets ------------------------------------------------------------------


def test_the_wrapper_mode_needs_a_level_from_which_there_is_no_way_back() -> None:
    wrapper = {"smtp_tls_wrappermode": "yes"}
    assert "the wrapper mode cannot be used at security level" in problems(wrapper)
    assert problems(wrapper | {"smtp_tls_security_level": "none"})
    assert policy(wrapper | {"smtp_tls_security_level": "encrypt"}).wrapper
    assert "wrapper mode cannot be used" in refusal(
        with_entry("may", smtp_tls_security_level="encrypt", **wrapper)
    )


def test_the_wrapper_mode_can_be_chosen_for_one_destination() -> None:
    assert policy(with_entry("encrypt wrappermode=yes")).wrapper
    both = {"smtp_tls_wrappermode": "yes", "smtp_tls_security_level": "encrypt"}
    assert not policy(with_entry("may wrappermode=no", **both)).wrapper
    assert policy(with_entry("none", **both)) == PLAINTEXT


@pytest.mark.parametrize("level", Level)
def test_s008_on_a_unix_socket_may_means_none_and_names_are_our_own(level: Level) -> None:
    settings = {
        "lmtp_tls_security_level": level.word,
        "lmtp_tls_fingerprint_cert_match": SHA256,
    }
    found = policy(settings, "unix:/run/x", "client.example", Protocol.LMTP)
    if level <= Level.MAY:
        assert found == PLAINTEXT
    else:
        assert found.level is level
    if level >= Level.VERIFY:
        assert found.match == ("client.example",)


# --- files and the rest --------------------------------------------------------------------------


def test_authorities_and_certificates_are_those_of_main_cf() -> None:
    found = policy(
        {
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": "/ca.pem",
            "smtp_tls_CApath": "/cas",
            "tls_append_default_CA": "yes",
            "smtp_tls_cert_file": "/rsa.pem",
            "smtp_tls_eccert_file": "/ec.pem",
            "smtp_tls_eckey_file": "/ec.key",
            "smtp_tls_scert_verifydepth": "3",
            "tls_wildcard_matches_multiple_labels": "no",
            "smtp_tls_connection_reuse": "no",
        }
    )
    assert found.anchors == Anchors(file="/ca.pem", directory="/cas", system=True)
    assert found.identity == Identity(pairs=(("/rsa.pem", "/rsa.pem"), ("/ec.pem", "/ec.key")))
    assert (found.depth, found.many_labels, found.shared) == (3, False, False)
    assert policy({}).shared
    assert policy(with_entry("may connection_reuse=no")).shared is False


def test_chain_files_win_over_the_files_before_them() -> None:
    settings = {"smtp_tls_chain_files": "/a.pem, /b.pem", "smtp_tls_cert_file": "/old.pem"}
    found = policies(settings)
    assert found.main_policy().identity == Identity(
        pairs=(("/a.pem", "/a.pem"), ("/b.pem", "/b.pem")), one_text=True
    )
    assert found.warnings == (
        "configuration: smtp_tls_cert_file: ignored when smtp_tls_chain_files is not empty",
    )


def test_a_sample_of_policies_names_every_file_that_may_be_needed() -> None:
    settings = {"smtp_tls_trust_anchor_file": "/x.pem", "smtp_tls_CAfile": "/ca.pem"}
    anchors = Anchors(file="/ca.pem")
    assert [each.anchors for each in policies(settings).sample()] == [anchors]
    found = policies(with_entry("none", smtp_tls_security_level="fingerprint", **settings))
    (sample,) = found.sample()  # main.cf alone makes none
    assert sample.anchors == Anchors(file="/ca.pem", trust_files=("/x.pem",))
    assert [each.level for each in policies(with_entry("none")).sample()] == [
        *(Level.MAY, Level.VERIFY),
    ]


def test_trust_anchors_hold_where_authorities_prove_who_a_server_is() -> None:
    settings = {"smtp_tls_trust_anchor_file": "/x.pem /y.pem"}
    for level in Level:
        match = f" match={SHA256}" if level is Level.FINGERPRINT else ""
        files = policy(with_entry(level.word + match, **settings)).anchors.trust_files
        assert files == (("/x.pem", "/y.pem") if level >= Level.VERIFY else ())
    entry = policy(with_entry("secure tafile=/z.pem", **settings))
    assert entry.anchors.trust_files == ("/z.pem",)


def test_what_is_logged_and_remembered() -> None:
    found = policies()
    assert (found.note_offer, found.loglevel) == (False, 0)
    assert (found.session_timeout, found.session_database) == (3600.0, "")
    found = policies(
        {
            "smtp_tls_note_starttls_offer": "yes",
            "smtp_tls_loglevel": "2",
            "smtp_tls_session_cache_database": "btree:${data_directory}/smtp_scache",
        }
    )
    assert (found.note_offer, found.loglevel) == (True, 2)
    assert found.session_database == "btree:/var/spool/postrio/smtp_scache"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("1s", 120.0), ("2m", 120.0), ("1h", 3600.0), ("200d", 8_640_000.0)],
)
def test_s122_sessions_live_from_two_minutes_to_a_hundred_days_or_not_at_all(
    text: str, seconds: float
) -> None:
    assert policies({"smtp_tls_session_cache_timeout": text}).session_timeout == seconds


# --- what is odd ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("smtp_tls_secure_cert_match", "nexthop, hostname", "hostname comes from DNS"),
        ("smtp_tls_fingerprint_digest", "md5", "md5 digests can be forged"),
        ("smtp_tls_fingerprint_digest", "sha1", "sha1 digests can be forged"),
        ("smtp_tls_enable_rpk", "yes", "bare public keys are not supported"),
        ("smtp_tls_mandatory_protocols", "SSLv3, TLSv1", "SSLv3 cannot be spoken any more"),
        ("smtp_tls_protocols", "SSLv2:SSLv3:TLSv1", "SSLv2, SSLv3 cannot be spoken any more"),
    ],
)
def test_what_is_odd_is_told_once_with_its_place(name: str, value: str, words: str) -> None:
    (warning,) = policies({name: value}).warnings
    assert warning.startswith(f"configuration: {name}: ")
    assert words in warning
    assert policies({name: value}, Protocol.LMTP).warnings == ()
    (warning,) = policies({name.replace("smtp", "lmtp"): value}, Protocol.LMTP).warnings
    assert warning.startswith(f"configuration: {name.replace('smtp', 'lmtp')}: ")


def test_what_is_not_odd_is_not_told() -> None:
    usual = {
        "smtp_tls_security_level": "may",
        "smtp_tls_CApath": "/etc/ssl/certs",
        "smtp_tls_session_cache_database": "btree:${data_directory}/smtp_scache",
        "smtp_tls_protocols": "!SSLv2, !SSLv3",
        "smtp_tls_mandatory_protocols": "!SSLv2,!SSLv3,!TLSv1,!TLSv1.1",
        "smtp_tls_exclude_ciphers": "aNULL, MD5, DES, RC4, EXP",
        "smtp_tls_secure_cert_match": "nexthop, .hostname.example",
    }
    config = Config.from_mapping(usual)
    assert config.warnings == ()
    for protocol in Protocol:
        assert TlsPolicies.from_config(config, protocol).warnings == ()


def test_all_mistakes_are_told_at_once() -> None:
    text = problems(
        {
            "smtp_tls_protocols": "TLSv9",
            "smtp_tls_ciphers": "best",
            "smtp_tls_exclude_ciphers": "!MD5",
            "smtp_tls_servername": "192.0.2.1",
            "tls_high_cipherlist": "HIGH:bad!",
            "smtp_tls_security_level": "dane",
        }
    )
    assert len(text.splitlines()) == 6
    assert all(line.startswith("configuration: ") for line in text.splitlines())


# --- smtp_tls_per_site ---------------------------------------------------------------------------

WORDS = ("", "NONE", "MAY", "MUST_NOPEERMATCH", "MUST")
# Of nexthop (left) and host (above), in the order of WORDS; "." stands for main.cf's level.
SITES = """
    .        none     may      encrypt  verify
    none     none     none     encrypt  verify
    may      none     may      encrypt  verify
    encrypt  encrypt  encrypt  encrypt  verify
    verify   verify   verify   verify   verify
"""
CELLS = dict(zip(itertools.product(WORDS, WORDS), SITES.split(), strict=True))


@pytest.mark.parametrize("main", ["none", "may", "encrypt", "fingerprint", "verify", "secure"])
@pytest.mark.parametrize(("nexthop", "host"), CELLS)
def test_s129_of_two_entries_the_definite_and_the_stronger_one_holds(
    nexthop: str, host: str, main: str
) -> None:
    entries = {"a.example": nexthop, "mx.example": host, "other": "NONE"}
    table = ", ".join(f"{key}={text}" for key, text in entries.items() if text)
    found = policy(
        {
            "smtp_tls_security_level": main,
            "smtp_tls_fingerprint_cert_match": SHA256,
            "smtp_tls_per_site": f"inline:{{ {table} }}",
        }
    ).level
    expected = Level[(CELLS[nexthop, host] if CELLS[nexthop, host] != "." else main).upper()]
    if expected is Level.MAY:  # it does not take back what main.cf demands
        expected = max(expected, Level[main.upper()]) if nexthop or host else expected
    assert found is expected


def test_a_broken_entry_by_host_defers_whatever_the_nexthop_says() -> None:
    settings = {"smtp_tls_per_site": "inline:{ a.example=MUST, mx.example=ALWAYS }"}
    assert refusal(settings) == (
        'smtp_tls_per_site, server hostname "mx.example": unknown TLS policy "ALWAYS";'
        " expected NONE, MAY, MUST_NOPEERMATCH or MUST"
    )


def test_per_site_is_ignored_with_a_word_where_there_are_policy_maps() -> None:
    settings = with_entry("encrypt", smtp_tls_per_site="static:NONE")
    assert policy(settings).level is Level.ENCRYPT
    assert policies(settings).warnings == (
        "configuration: smtp_tls_per_site: ignored when smtp_tls_policy_maps is not empty",
    )


def test_the_warning_about_per_site_shows_an_entry_in_its_place() -> None:
    (warning,) = Config.from_mapping({"smtp_tls_per_site": "static:MUST"}).warnings
    assert "use smtp_tls_policy_maps" in warning
    assert '"example.com encrypt"' in warning


# --- equal for equal -----------------------------------------------------------------------------


def test_a_policy_without_names_is_one_object_for_all_destinations() -> None:
    found = policies()
    first = finish(found.policy("a.example", "mx.a.example"))
    assert finish(found.policy("b.example", "mx.b.example")) is first


HOSTS = st.sampled_from(["mx.example", "MX.Example", "192.0.2.1", "::1", "bücher.test"])
NEXTHOPS = st.sampled_from(["a.example", "[a.example]", "[a.example]:465", "b.a.example"])
ENTRIES = st.sampled_from(
    [
        *("none", "may", "encrypt wrappermode=yes", "verify", "secure match=nexthop"),
        *("secure servername=hostname", f"fingerprint match={SHA256}", "may protocols=TLSv1.3"),
    ]
)


@given(ENTRIES, NEXTHOPS, HOSTS)
def test_two_processes_agree_on_a_policy(entry: str, nexthop: str, host: str) -> None:
    found = policies(with_entry(entry))
    mine = finish(found.policy(nexthop, host))
    assert finish(found.policy(nexthop, host)) is mine
    theirs = policy(with_entry(entry), nexthop, host)
    assert (theirs, theirs.fingerprint) == (mine, mine.fingerprint)
