"""A configuration as a whole: where it comes from, what it says, how its mistakes are told."""

from pathlib import Path

import pytest

from protocol.request import Protocol
from worker.config import config as config_module
from worker.config.config import Config, ConfigError, Facts
from worker.queue.settings import Feedback, FeedbackScale


def problems(mapping: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping(mapping)
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    return str(caught.value).splitlines()


# --- getters -------------------------------------------------------------------------------------


def test_getters_give_the_typed_value() -> None:
    config = Config.from_mapping({"smtp_helo_timeout": "2m", "inet_protocols": "ipv4"})
    assert config.seconds("smtp_helo_timeout") == 120.0
    assert config.seconds("maximal_queue_lifetime") == 432_000.0
    assert config.words("inet_protocols") == ("ipv4",)
    assert config.integer("message_size_limit") == 10_240_000
    assert config.boolean("smtp_skip_5xx_greeting") is True
    assert config.choice("smtp_address_preference") == "any"
    assert config.text("smtp_helo_name") == "client.example"
    assert config.text("smtp_helo_timeout") == "2m"
    assert not config.maps("transport_maps")
    assert config.matches("smtp_connection_cache_destinations").warnings == ()


def test_getters_refuse_names_and_kinds_that_are_not_in_the_table() -> None:
    config = Config.from_mapping({"mine": "x", "myorigin": "$mine"})
    with pytest.raises(LookupError, match="mine is not in the table"):
        config.text("mine")
    with pytest.raises(LookupError, match="smtp_helo_timeout is of the kind time, not number"):
        config.integer("smtp_helo_timeout")
    with pytest.raises(LookupError, match="relayhost is of the kind text, not list to match"):
        config.matches("relayhost")
    with pytest.raises(LookupError, match="ask for_transport"):
        config.integer("relay_destination_concurrency_limit")


def test_lmtp_reads_its_own_twins() -> None:
    config = Config.from_mapping({})
    for name, twin in {
        "smtp_helo_timeout": "lmtp_lhlo_timeout",
        "smtp_helo_name": "lmtp_lhlo_name",
        "smtp_discard_ehlo_keywords": "lmtp_discard_lhlo_keywords",
        "smtp_discard_ehlo_keyword_address_maps": "lmtp_discard_lhlo_keyword_address_maps",
        "smtp_mail_timeout": "lmtp_mail_timeout",
        "smtp_tcp_port": "lmtp_tcp_port",
        "smtp_always_send_ehlo": "smtp_always_send_ehlo",
        "inet_protocols": "inet_protocols",
    }.items():
        assert config.mirror(name, Protocol.LMTP) == twin
        assert config.mirror(name, Protocol.SMTP) == name


def test_s133_transports_read_their_own_limits_where_there_are_any() -> None:
    suffix = "destination_concurrency_limit"
    config = Config.from_mapping(
        {
            f"relay_{suffix}": "7",
            f"default_{suffix}": "9",
            "my-x_initial_destination_concurrency": "2",
        }
    )
    assert config.integer(config.for_transport(suffix, "relay")) == 7
    assert config.integer(config.for_transport(suffix, "other")) == 9
    assert config.for_transport(suffix, "smtp") == f"smtp_{suffix}"
    assert config.integer(f"smtp_{suffix}") == 9
    initial = "initial_destination_concurrency"
    assert config.integer(config.for_transport(initial, "my-x")) == 2
    assert config.for_transport(initial, "relay") == initial
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("hostname", "settings", "myhostname", "mydomain"),
    [
        ("mx.example.org", {}, "mx.example.org", "example.org"),
        ("mx", {}, "mx.localdomain", "localdomain"),
        ("mx", {"mydomain": "b.example"}, "mx.b.example", "b.example"),
        ("mx", {"myhostname": "short"}, "short", "localdomain"),
        ("mx", {"myhostname": "h.$mydomain", "mydomain": "c.example"}, "h.c.example", "c.example"),
    ],
)
def test_host_and_domain_are_computed_from_each_other(
    hostname: str, settings: dict[str, str], myhostname: str, mydomain: str
) -> None:
    config = Config.from_mapping(settings, facts=Facts(hostname=hostname))
    assert config.text("myhostname") == myhostname
    assert config.text("mydomain") == mydomain
    assert config.text("myorigin") == myhostname


def test_s169_process_facts_can_be_mentioned() -> None:
    facts = Facts(hostname="h.example", process_id=42, process_name="lmtp", mail_version="1.2")
    text = "$process_id.$process_name.$mail_version"
    config = Config.from_mapping({"smtp_helo_name": text}, facts=facts)
    assert config.text("smtp_helo_name") == "42.lmtp.1.2"


# --- mistakes ------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    main_cf = tmp_path / "main.cf"
    main_cf.write_text(
        "smtp_helo_timeout = 5x\n\n# fine\nrelayhost = [a]:25\n"
        "smtp_host_lookup = dns,\n  nis\noops\n"
    )
    with pytest.raises(ConfigError) as caught:
        Config.load(main_cf, ["soft_bounce=maybe", "x"], {})
    assert str(caught.value).splitlines() == [
        f'{main_cf}:7: no "=" in "oops"; expected name = value',
        '-o: no "=" in "x"; expected name = value',
        f"{main_cf}:1: smtp_helo_timeout = 5x: not a time;"
        " expected a whole number with s, m, h, d or w (without: s)",
        f'{main_cf}:5: smtp_host_lookup = dns,  nis: "nis" is not known here; expected dns, native',
        '-o: soft_bounce = maybe: not a truth value; expected "yes" or "no"',
    ]


def test_a_mistake_is_told_once_where_it_was_made() -> None:
    assert problems({"default_destination_concurrency_limit": "many"}) == [
        "configuration: default_destination_concurrency_limit = many: not a number;"
        " expected a whole number of at least 0"
    ]
    assert problems({"limit": "$limit", "smtp_mx_session_limit": "$limit"}) == [
        "configuration: limit = $limit: refers to itself: limit -> limit;"
        " expected a value that does not lead back"
    ]


def test_a_mistake_in_a_users_own_name_shows_where_it_is_used() -> None:
    assert problems({"limit": "two", "smtp_mx_session_limit": "$limit"}) == [
        "configuration: smtp_mx_session_limit = $limit: not a number;"
        " expected a whole number of at least 0"
    ]


def test_a_host_name_made_of_a_domain_made_of_it_is_a_loop() -> None:
    (told,) = problems({"myhostname": "h.$mydomain"})
    assert "refers to itself: myhostname -> mydomain -> myhostname" in told


def test_computed_names_cannot_be_set() -> None:
    (told,) = problems({"process_id": "4"})
    assert told.endswith("is computed and cannot be set; expected the line removed")


def test_limits_of_the_table_hold() -> None:
    assert len(problems({"smtp_mail_timeout": "0", "delay_logging_resolution_limit": "7"})) == 2
    assert Config.from_mapping({"smtp_connect_timeout": "0"}).seconds("smtp_connect_timeout") == 0.0


@pytest.mark.parametrize("text", ["1", "0.5", "1/concurrency", "1 / sqrt_concurrency", "2/8"])
def test_feedback_is_a_number_or_a_share(text: str) -> None:
    name = "default_destination_concurrency_positive_feedback"
    assert Config.from_mapping({name: text}).text(name) == text
    assert "number/concurrency" in problems({name: f"x{text}"})[0]


def test_s133_the_divisor_of_a_feedback_may_be_written_in_any_case() -> None:
    name = "default_destination_concurrency_positive_feedback"
    config = Config.from_mapping({name: "0.5 / SQRT_Concurrency"})
    assert Feedback.parse(config.text(name)) == Feedback(0.5, FeedbackScale.SQRT_CONCURRENCY)


@pytest.mark.parametrize("text", ["1/0", "0/0.0", "5", "8/2", "0.5/0.1", "1.5/concurrency"])
@pytest.mark.parametrize("prefix", ["default", "smtp", "bulk"])
def test_s133_a_feedback_outside_of_0_to_1_is_a_mistake(prefix: str, text: str) -> None:
    name = f"{prefix}_destination_concurrency_negative_feedback"
    [told] = problems({name: text})
    assert f"{name} = {text}: is not in the range from 0 to 1" in told


@pytest.mark.parametrize(
    "name",
    [
        *("myhostname", "mydomain", "myorigin", "mail_name", "syslog_name"),
        *("double_bounce_sender", "empty_address_recipient", "bounce_notice_recipient"),
        *("2bounce_notice_recipient", "delay_notice_recipient"),
    ],
)
@pytest.mark.parametrize("text", ["", "$nothing"])
def test_a_name_that_has_to_be_there_is_not_empty(name: str, text: str) -> None:
    [told] = problems({name: text})
    assert told == f"configuration: {name} = {text}: is empty; expected text that is not empty"


def test_a_table_that_cannot_be_used_is_a_mistake() -> None:
    assert problems({"transport_maps": "dbm:/etc/postfix/transport"}) == [
        "configuration: transport_maps = dbm:/etc/postfix/transport: the table type"
        ' "dbm" is not supported yet; expected texthash:/etc/postfix/transport, which reads the'
        " text file itself"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "bob:canary",
        "canary",
        "canary:bob",
        "static:bob:canary texthash:/nowhere",
        "texthash:/nowhere static:bob:canary",
        "hash:/x, bob:canary",
        "proxy:static:bob:canary hash:/x",
        "unionmap:{static:bob:canary, hash:/x}",
        "pipemap:{static:bob:canary, hash:/x}",
        "randmap:{bob:canary} hash:/x",
        "inline:{a=bob:canary",
        "inline:{{[a.example]:25 bob:canary}}",
        "$mine",
    ],
)
def test_no_mistake_in_the_password_tables_shows_a_password(text: str) -> None:
    (problem,) = problems({"smtp_sasl_password_maps": text, "mine": "bob:canary"})
    assert "smtp_sasl_password_maps = " in problem
    assert "canary" not in problem


def test_names_of_password_tables_are_shown() -> None:
    (problem,) = problems({"smtp_sasl_password_maps": "proxy:hash:/no/x"})
    assert "= proxy:hash:/no/x: /no/x.db cannot be read" in problem


def test_what_nothing_uses_may_be_broken() -> None:
    config = Config.from_mapping({"smtpd_banner": "$ is fine", "smtpd_x": "${"})
    assert config.expanded("smtpd_banner") == "$ is fine"


# --- warnings ------------------------------------------------------------------------------------


def test_unknown_names_are_warned_of_with_the_nearest() -> None:
    config = Config.from_mapping({"smtp_helo_timeot": "3", "nothing_like_it": "4"})
    assert config.warnings == (
        "configuration: unknown parameter smtp_helo_timeot has no effect;"
        " did you mean smtp_helo_timeout?",
        "configuration: unknown parameter nothing_like_it has no effect",
    )


def test_a_users_own_name_is_warned_of_only_when_nothing_leads_to_it() -> None:
    config = Config.from_mapping({"a": "$b", "b": "x.example", "c": "$c2", "myorigin": "$a"})
    assert config.text("myorigin") == "x.example"
    assert config.warnings == ("configuration: unknown parameter c has no effect",)


def test_a_users_own_name_that_other_programs_lead_to_goes_with_them() -> None:
    config = Config.from_mapping({"smtpd_banner": "$greeting", "greeting": "$word", "word": "$ hi"})
    assert config.warnings == (
        "configuration: parameters of other Postfix programs have no effect:"
        " smtpd_banner, greeting, word",
    )


def test_mentioning_what_is_not_defined_is_warned_of() -> None:
    config = Config.from_mapping({"relayhost": "$mydomian"})
    assert config.text("relayhost") == ""
    assert config.warnings == (
        "configuration: relayhost mentions $mydomian, which is not defined; did you mean mydomain?",
    )


def test_deprecated_names_work_and_say_what_to_use() -> None:
    config = Config.from_mapping({"fallback_relay": "[b.example]"})
    assert config.words("smtp_fallback_relay") == ("[b.example]",)
    assert config.warnings == (
        "configuration: fallback_relay is deprecated: use smtp_fallback_relay",
    )


def test_what_only_postfix_processes_read_is_known_and_said_to_have_no_effect() -> None:
    config = Config.from_mapping({"max_use": "7", "internal_mail_filter_classes": "notify"})
    assert config.integer("max_use") == 7
    assert config.warnings == (
        "configuration: max_use has no effect: only a process under Postfix's master(8) reads it",
        "configuration: internal_mail_filter_classes has no effect:"
        " postrio has no filters of incoming mail",
    )


def test_names_of_other_programs_share_a_warning_and_those_to_come_have_their_own() -> None:
    others = {f"smtpd_{n}": "x" for n in range(6)}
    config = Config.from_mapping(others | {"smtp_tls_dane_insecure_mx_policy": "may"})
    assert config.warnings == (
        "configuration: smtp_tls_dane_insecure_mx_policy is not supported yet and has no effect",
        "configuration: parameters of other Postfix programs have no effect: smtpd_0, smtpd_1,"
        " smtpd_2, smtpd_3, smtpd_4 and 1 more",
    )


def test_a_slip_in_a_name_of_ours_is_not_taken_for_another_programs() -> None:
    (warning,) = Config.from_mapping({"proxy_interface": "1.2.3.4"}).warnings
    assert warning.endswith("did you mean proxy_interfaces?")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smtp_tls_CAfille", "smtp_tls_CAfile"),
        ("smtp_tls_securty_level", "smtp_tls_security_level"),
        ("smtp_tls_policy_map", "smtp_tls_policy_maps"),
        ("lmtp_tls_loglevl", "lmtp_tls_loglevel"),
        ("tls_append_defaultCA", "tls_append_default_CA"),
        ("smtp_sasl_password_map", "smtp_sasl_password_maps"),
    ],
)
def test_a_slip_in_a_name_of_tls_is_not_taken_for_one_to_come(name: str, meant: str) -> None:
    assert Config.from_mapping({name: "x"}).warnings == (
        f"configuration: unknown parameter {name} has no effect; did you mean {meant}?",
    )


def test_names_of_the_smtp_server_are_no_slips_in_those_of_the_client() -> None:
    given = {"smtpd_tls_cert_file": "/a", "smtpd_tls_security_level": "may"}
    assert Config.from_mapping(given).warnings == (
        "configuration: parameters of other Postfix programs have no effect:"
        " smtpd_tls_cert_file, smtpd_tls_security_level",
    )


def test_relays_by_sender_have_a_warning_of_their_own() -> None:
    given = {"sender_dependent_relayhost_maps": "hash:/a", "sender_canonical_maps": "hash:/b"}
    assert Config.from_mapping(given).warnings == (
        "configuration: sender_dependent_relayhost_maps is not supported yet and has no effect",
        "configuration: parameters of other Postfix programs have no effect: sender_canonical_maps",
    )


# --- where it comes from -------------------------------------------------------------------------


def test_myorigin_may_be_a_file_as_in_debian(tmp_path: Path) -> None:
    main_cf, name = tmp_path / "main.cf", tmp_path / "mailname"
    main_cf.write_text(f"myhostname = mail.x.example\nmyorigin = {name}\n")
    name.write_text("x.example\nnot this\n")
    assert Config.load(main_cf).text("myorigin") == "x.example"
    name.write_text("a$b.example")
    assert Config.load(main_cf).text("myorigin") == "a$b.example"
    given = f"{main_cf}:2: myorigin = {name}: "
    expected = "; expected a domain, or a file with one in its first line"
    for octets, why in (
        (b"\nx.example\n", "the first line of that file is empty"),
        (None, "cannot be read: No such file or directory"),
    ):
        name.unlink()
        if octets is not None:
            name.write_bytes(octets)
        with pytest.raises(ConfigError) as caught:
            Config.load(main_cf)
        assert str(caught.value) == given + why + expected
        name.touch()


def test_a_directory_stands_for_its_main_cf(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("myhostname = h.example\n")
    for config in (
        Config.load(tmp_path, environ={}),
        Config.load(tmp_path / "main.cf", environ={}),
        Config.load(environ={"MAIL_CONFIG": str(tmp_path)}),
    ):
        assert config.text("myhostname") == "h.example"
        assert config.text("config_directory") == str(tmp_path)
        assert config.settings["myhostname"].place == f"{tmp_path}/main.cf:1"


def test_without_any_file_the_defaults_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "DEFAULT_DIRECTORY", tmp_path / "none")
    config = Config.load(environ={}, facts=Facts())
    assert config.settings == {}
    assert config.seconds("queue_run_delay") == 300.0


def test_the_usual_place_is_read_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "main.cf").write_text("soft_bounce = yes\n")
    monkeypatch.setattr(config_module, "DEFAULT_DIRECTORY", tmp_path)
    assert Config.load(environ={}).boolean("soft_bounce") is True


def test_s177_the_command_line_wins_and_its_last_word_holds(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("relayhost = a\nmyorigin = $relayhost\n")
    config = Config.load(tmp_path, ["relayhost=b", "relayhost = c"], {})
    assert config.text("relayhost") == config.text("myorigin") == "c"
    assert config.settings["relayhost"].place == "-o"


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "main.cf", tmp_path):
        with pytest.raises(ConfigError, match=r"main\.cf: cannot be read: No such file"):
            Config.load(path, environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(environ={"MAIL_CONFIG": str(tmp_path)})


def test_a_file_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_bytes(b"a = b\nmail_name = Z\xfcrich\n")
    with pytest.raises(ConfigError, match=r"main\.cf:2: not UTF-8 text; expected UTF-8"):
        Config.load(tmp_path, environ={})


def test_warnings_of_the_file_its_names_and_its_tables_come_together(tmp_path: Path) -> None:
    table = tmp_path / "transport"
    table.write_text("a.example\n")
    (tmp_path / "main.cf").write_text(
        "soft_bounce = no\nsoft_bounce = yes\nfoo = 1\n"
        "transport_maps = texthash:$config_directory/transport\n"
    )
    config = Config.load(tmp_path, environ={})
    assert config.warnings == (
        f"{tmp_path}/main.cf:2: soft_bounce = yes overrides the setting in line 1",
        f"{tmp_path}/main.cf:3: unknown parameter foo has no effect",
        f"transport_maps: {table}:1: left out; expected key, white space, text",
    )


def test_a_configuration_cannot_be_changed() -> None:
    config = Config.from_mapping({"soft_bounce": "no"})
    setting = config.settings["soft_bounce"]
    with pytest.raises(AttributeError):
        config.warnings = ()  # type: ignore[misc]  # what is tested
    with pytest.raises(TypeError):
        config.settings["a"] = setting  # type: ignore[index]  # what is tested
