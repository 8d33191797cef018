"""What `postrio config` prints."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.config import Config
from worker.config.listing import Form, UnknownParameterError, Which, show
from worker.config.main_cf import parse_main_cf
from worker.config.parameters import PARAMETERS, Kind

SET = {
    "relayhost": "[relay.example]:25",
    "a_name": "x",
    "myorigin": "$a_name",
    "smtpd_banner": "$ hi",
    "unknown": "1",
}


def config() -> Config:
    return Config.from_mapping(SET)


def test_all_parameters_are_listed_in_order_with_what_is_in_force() -> None:
    lines = list(show(config()))
    assert "relayhost = [relay.example]:25" in lines
    assert "smtp_helo_name = $myhostname" in lines
    assert "transport_maps =" in lines
    names = [line.partition(" = ")[0].removesuffix(" =") for line in lines]
    assert names == sorted(PARAMETERS.keys() | {"a_name", "smtpd_banner"})


def test_changed_ones_are_those_that_were_set_and_mean_something() -> None:
    assert list(show(config(), which=Which.CHANGED)) == [
        "a_name = x",
        "myorigin = $a_name",
        "relayhost = [relay.example]:25",
        "smtpd_banner = $ hi",
    ]
    assert list(show(config(), ["soft_bounce", "relayhost"], which=Which.CHANGED)) == [
        "relayhost = [relay.example]:25"
    ]


def test_defaults_do_not_care_what_was_set() -> None:
    assert list(show(config(), ["relayhost", "a_name", "myorigin"], which=Which.DEFAULTS)) == [
        "relayhost =",
        "myorigin = $myhostname",
    ]
    changed = Config.from_mapping({"myhostname": "other.example"})
    assert list(show(changed, ["myorigin"], which=Which.DEFAULTS, expanded=True)) == [
        "myorigin = client.example"
    ]
    assert len(list(show(changed, which=Which.DEFAULTS))) == len(PARAMETERS)


def test_named_ones_come_in_the_order_asked_as_values_names_or_expanded() -> None:
    asked = ["relayhost", "myorigin", "transport_maps", "smtpd_banner"]
    values = ["[relay.example]:25", "x", "", "$ hi"]
    assert list(show(config(), asked, form=Form.VALUES, expanded=True)) == values
    assert list(show(config(), asked, form=Form.NAMES)) == asked


def test_names_for_a_transport_are_known_without_being_set() -> None:
    name = "bulk_destination_rate_delay"
    assert list(show(config(), [name])) == [f"{name} = $default_destination_rate_delay"]
    assert list(show(config(), [name], expanded=True)) == [f"{name} = 0s"]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownParameterError, match=r"did you mean relayhost\?"):
        list(show(config(), ["relay_host"]))


def test_white_space_is_printed_as_one_space(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("smtp_fallback_relay =\n  a,\n\tb\n")
    loaded = Config.load(tmp_path, environ={})
    assert list(show(loaded, which=Which.CHANGED)) == ["smtp_fallback_relay = a, b"]


TEXTS = st.sampled_from(
    [
        "a.example",
        "$myhostname",
        "${mydomain?{x  y}:{z}}",
        "a,\tb",
        "$$x",
        "",
        "# no comment",
        "{ }",
    ]
)
BY_KIND = {
    Kind.TEXT: TEXTS,
    Kind.WORDS: TEXTS,
    Kind.BOOLEAN: st.sampled_from(["yes", "no", "${myhostname?no}"]),
    Kind.INTEGER: st.integers(1, 6).map(str),
    Kind.TIME: st.sampled_from(["1h", "30", "${myhostname?{5}}m"]),
    Kind.TABLES: st.sampled_from(["inline:{a=b, {c = d e}}, static:x", "regexp:{{/a b/ c}}"]),
    Kind.MATCHES: st.sampled_from(["a.example, !B", "!static:{x  y}, $mydomain", "{a b} ::1"]),
    Kind.HOSTS: st.sampled_from(["a.example, !192.0.2.0/24", "!static:{x  y}, $mydomain", "::1"]),
}
NAMES = [
    name
    for name, row in PARAMETERS.items()
    if row.kind in BY_KIND
    and not (row.read_only or row.pattern or row.check or row.choices)
    and name not in {"myhostname", "mydomain"}
]
SETTINGS = st.lists(
    st.sampled_from(NAMES).flatmap(
        lambda name: st.tuples(st.just(name), BY_KIND[PARAMETERS[name].kind])
    ),
    max_size=6,
).map(dict)


@given(SETTINGS)
def test_what_is_printed_is_a_main_cf_with_the_same_values(settings: dict[str, str]) -> None:
    first = Config.from_mapping(settings)
    for which in (Which.ALL, Which.CHANGED):
        lines = [
            line
            for line in show(first, which=which)
            if not PARAMETERS[line.partition(" ")[0]].read_only
        ]
        read = parse_main_cf("\n".join(lines), "printed")
        assert not read.problems
        second = Config.from_mapping({s.name: s.value for s in read.settings})
        for name, row in PARAMETERS.items():
            if row.kind is Kind.TABLES:
                assert [table.spec for table in first.maps(name).tables] == [
                    table.spec for table in second.maps(name).tables
                ]
            else:
                assert first.text(name).split() == second.text(name).split()
