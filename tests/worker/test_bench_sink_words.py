"""What spells a sink: words, scenario files, addresses; what is wrong with them is said clearly."""

import math
from pathlib import Path
from random import Random

import pytest

from bench.sink.behaviour import KEYWORDS, Behaviour, BehaviourError, Chance, Phase, Rate
from bench.sink.delay import LONGEST, Delay, parse_delay
from bench.sink.listen import MOST, Listen, parse_addresses
from bench.sink.scenario_file import LARGEST, read_scenario
from bench.sink.words import SETTINGS, parse_behaviour

DRAWS = 4_000


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["keywords=size,dsn"], Behaviour(keywords=("SIZE", "DSN"))),
        (["keywords="], Behaviour(keywords=())),
        (["announce=AUTH PLAIN LOGIN"], Behaviour(announced=("AUTH PLAIN LOGIN",))),
        (["messages=3", "connections=4"], Behaviour(message_limit=3, connections=4)),
        (["client-connections=1"], Behaviour(client_connections=1)),
        (["connection-rate=1/60"], Behaviour(connection_rate=Rate(1, 60.0))),
        (["message-rate=5/0.5"], Behaviour(message_rate=Rate(5, 0.5))),
        (["tarpit=0.1", "slow-read=100/2"], Behaviour(tarpit=0.1, slow_read=Rate(100, 2.0))),
        (["latency=0.5"], Behaviour(latency=0.5)),
        (["latency:end=0.5"], Behaviour(delays={Phase.END: Delay("fixed", 0.5)})),
        (
            ["mail=5%451 no", "mail=2.5% 550 no", "mail=250 yes"],
            Behaviour(
                errors={Phase.MAIL: (Chance(0.05, "451 no"), Chance(0.025, "550 no"))},
                replies={Phase.MAIL: "250 yes"},
            ),
        ),
    ],
)
def test_words_spell_behaviours(words: list[str], expected: Behaviour) -> None:
    assert parse_behaviour(words) == expected


def test_a_distribution_for_every_reply_replaces_what_was_said_before() -> None:
    behaviour = parse_behaviour(["latency=1", "latency:end=2", "latency=exponential:0.1"])
    assert behaviour.latency == 0.0
    assert behaviour.delays == dict.fromkeys(Phase, Delay("exponential", 0.1))
    assert parse_behaviour(["latency=3"], behaviour) == Behaviour(latency=3.0)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("novel=1", "known are lmtp, accept, hostname.* as PHASE=REPLY the phases connect"),
        ("rcpt=99 what", "expected a reply such as 450"),
        ("rcpt=250 a\r\n250 b", "expected a reply"),
        ("rcpt=150 not yet", "expected a reply"),
        ("rcpt:a@x=550 no", "nothing can stand behind a colon"),
        ("content=550 no", "content has no reply"),
        ("latency:content=1", "content has no reply"),
        ("latency:rctp=1", "expected a phase: connect"),
        ("latency=gamma:1:2", "'gamma' is no distribution.*lognormal:MEDIAN:SIGMA"),
        ("latency=normal:1", "expected normal:MEAN:DEVIATION"),
        ("latency=uniform:2:1", "LOW at most HIGH"),
        ("latency=normal:1:x", "expected seconds"),
        ("latency", "expected SECONDS, uniform"),
        ("rcpt=101% 450 no", "100 % at most"),
        ("rcpt=0% 450 no", "over 0 %"),
        ("rcpt=1.2.3% 450 no", "over 0 %"),
        ("messages=-1", "whole number from 0"),
        ("messages=1e3", "whole number"),
        ("messages=²", "whole number"),
        ("messages", "whole number"),
        ("message-rate=5", "NUMBER/SECONDS"),
        ("message-rate=5/0", "NUMBER/SECONDS"),
        ("message-rate=0/5", "NUMBER/SECONDS"),
        (
            "keywords=PIPELNING",
            "'PIPELNING' is no keyword that the sink obeys; those are PIPELINING",
        ),
        ("without=NOVEL", "'NOVEL' is no keyword"),
        ("announce=", "EHLO keyword"),
        ("announce=A\r\n250 B", "EHLO keyword"),
        ("hostname=a b", "without spaces"),
        ("cut=middle", "expected a phase: connect, ehlo"),
        ("cut-after=x", "whole number"),
        ("to=550 no", "an address and a reply"),
        ("lmtp=1", "takes no value"),
    ],
)
def test_a_wrong_word_is_named_with_what_it_could_be(word: str, complaint: str) -> None:
    with pytest.raises(BehaviourError, match=complaint) as caught:
        parse_behaviour([word])
    assert str(caught.value).startswith(repr(word))


def test_shares_of_one_phase_are_not_more_than_all() -> None:
    with pytest.raises(BehaviourError, match="100 % at most"):
        parse_behaviour(["rcpt=60% 450 a", "rcpt=60% 450 b"])
    parse_behaviour(["rcpt=60% 450 a", "rcpt=40% 450 b", "mail=60% 450 c"])


def test_which_behaviours_need_a_clock_and_which_one_process() -> None:
    waits = {"latency=1", "latency:end=1", "rtt=1", "tarpit=1", "slow-read=1/1"}
    counts = {"greylist", "connections=1", "client-connections=1"}
    counts |= {"connection-rate=1/1", "message-rate=1/1"}
    for word in waits | counts | {"refuse", "cut=end", "silent=end", "messages=1", "rcpt=9% 450 x"}:
        behaviour = parse_behaviour([word])
        assert (behaviour.takes_time, behaviour.counts_clients) == (word in waits, word in counts)


# --- delays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "median"),
    [
        ("0.5", 0.5),
        ("uniform:1:3", 2.0),
        ("normal:2:0.1", 2.0),
        ("exponential:2", 2.0 * math.log(2)),
        ("lognormal:2:0.5", 2.0),
    ],
)
def test_distributions_have_the_median_they_should(text: str, median: float) -> None:
    delay, random = parse_delay(text), Random(1)
    drawn = sorted(delay.draw(random) for _ in range(DRAWS))
    assert drawn[DRAWS // 2] == pytest.approx(median, rel=0.1)
    assert drawn[0] >= 0.0


@pytest.mark.parametrize("text", ["normal:0:5", "lognormal:86400:86400", "exponential:0"])
def test_a_delay_is_never_negative_nor_endless(text: str) -> None:
    delay, random = parse_delay(text), Random(1)
    drawn = [delay.draw(random) for _ in range(DRAWS)]
    assert min(drawn) >= 0.0
    assert max(drawn) <= LONGEST


# --- addresses ----------------------------------------------------------------------------------


def test_ranges_of_addresses_and_ports() -> None:
    listens = parse_addresses("127.0.1.254-127.0.2.1:2525-2526", Behaviour())
    assert [(listen.host, listen.port) for listen in listens] == [
        (host, port)
        for host in ("127.0.1.254", "127.0.1.255", "127.0.2.0", "127.0.2.1")
        for port in (2525, 2526)
    ]
    assert [one.host for one in parse_addresses("[::1]-[::2]:25", Behaviour())] == ["::1", "::2"]
    assert [one.host for one in parse_addresses("[::1-::2]:25", Behaviour())] == ["::1", "::2"]
    assert parse_addresses("unix:/a-b:1", Behaviour()) == [Listen(host="", path="/a-b:1")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected ADDRESS:PORT"),
        ("unix:", "expected ADDRESS:PORT"),
        ("localhost:25", "addresses are numbers"),
        ("127.0.0.1", "expected ADDRESS:PORT"),
        ("127.0.0.1:smtp", "expected ADDRESS:PORT"),
        ("127.0.0.1:65536", "1 to 65535"),
        ("127.0.0.1:30-20", "the smaller one first"),
        ("127.0.0.1:0-20", "1 to 65535"),
        ("127.0.0.1:²", "expected ADDRESS:PORT"),
        ("127.0.0.2-127.0.0.1:25", "before the first"),
        ("127.0.0.2-::3:25", "before the first"),
        ("::-ffff:::25", "expected|more than"),
        ("127.0.0.0-127.255.255.255:25", f"more than {MOST}"),
        ("127.0.0.1-127.0.1.0:1-65535", f"more than {MOST}"),
    ],
)
def test_wrong_addresses_are_named(text: str, complaint: str) -> None:
    with pytest.raises(BehaviourError, match=complaint):
        parse_addresses(text, Behaviour())


# --- scenario files -----------------------------------------------------------------------------

FULL = """
seed = 7

[default]
hostname = "mx.example"
latency = 0.25

[[listener]]
address = ["127.0.0.1:1", "unix:/run/sink"]
rcpt = ["10% 451 4.7.1 later", "1% 550 5.1.1 no"]
latency = {end = "normal:0.5:0.1", rcpt = 1}
to = {"a@x.example" = "550 5.1.1 no"}
keywords = ["PIPELINING", "SIZE"]
cut_after = 1000
greylist = true

[[listener]]
address = "127.0.0.2:1-2"
lmtp = true
message-rate = "10/60"
without = ["DSN", "SIZE"]
"""


def written(directory: Path, text: str) -> Path:
    """A scenario file with this text."""
    path = directory / "sink.toml"
    path.write_text(text)
    return path


def test_a_file_says_what_words_say(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, FULL), ["size=99"])
    default = ["hostname=mx.example", "latency=0.25", "size=99"]
    first = parse_behaviour(
        [
            *default,
            "rcpt=10% 451 4.7.1 later",
            "rcpt=1% 550 5.1.1 no",
            "latency:end=normal:0.5:0.1",
            "latency:rcpt=1",
            "to:a@x.example=550 5.1.1 no",
            "keywords=PIPELINING,SIZE",
            "cut-after=1000",
            "greylist",
        ]
    )
    second = parse_behaviour(
        [*default, "lmtp", "message-rate=10/60", "without=DSN", "without=SIZE"]
    )
    assert scenario.seed == 7
    assert scenario.default == parse_behaviour(default)
    assert list(scenario.listens) == [
        Listen(host="127.0.0.1", port=1, behaviour=first),
        Listen(host="", path="/run/sink", behaviour=first),
        Listen(host="127.0.0.2", port=1, behaviour=second),
        Listen(host="127.0.0.2", port=2, behaviour=second),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("novel = 1", r"'novel' is unknown; known are seed, default, listener"),
        ("seed = true", r"seed: expected a whole number"),
        ("default = 1", r"\[default\]: expected a table"),
        ("[listener]\naddress = '127.0.0.1:1'", r"listener: each is a table of its own"),
        ("listener = [1]", r"\[\[listener\]\] 1: address is missing"),
        ("[[listener]]", r"\[\[listener\]\] 1: address is missing"),
        ("[[listener]]\naddress = 5", r"\[\[listener\]\] 1: address: '5': expected ADDRESS:PORT"),
        (
            "[[listener]]\naddress = '[::]:1'\n[[listener]]\naddress = '[::]:2'\nrctp = 1",
            r"\[\[listener\]\] 2: rctp = 1: unknown; known are lmtp.* connect, ehlo, .*mail, rcpt",
        ),
        ("[default]\nrcpt = 'no'", r"\[default\]: rcpt = 'no': expected a reply such as 450"),
        (
            "[default.latency]\nrctp = 1",
            r"\[default\]: latency.rctp = 1: expected a phase: connect",
        ),
        ("[default]\nlatency = -1", r"\[default\]: latency = -1: expected SECONDS"),
        ("[default]\nlatency = nan", r"latency = nan: expected SECONDS"),
        ("[default]\nlatency = 2020-01-01", r"latency = .*expected SECONDS"),
        ("[default]\nmessages = 1.5", r"messages = 1.5: expected a whole number"),
        ("[default]\nkeywords = ['NOVEL']", r"keywords = \['NOVEL'\]: 'NOVEL' is no keyword"),
        ("[default]\nkeywords = 5", r"keywords = 5: expected EHLO keywords"),
        ("[default]\nto = '550 no'", r"to = '550 no': expected an address and a reply"),
        ("[default]\ncut = ['mail', {}]", r"cut = {}: expected a phase"),
        ("[default]\nlmtp = 'yes'", r"lmtp = 'yes': takes no value"),
        ("[default", r"Expected .\]. at the end"),
        ("a = " + "[" * 5_000, r"recursion|nested|line|at end of document"),
        ("#" * (LARGEST + 1), rf"larger than {LARGEST}"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BehaviourError, match=complaint) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sink.toml"
    path.write_bytes(b"seed = 1 # \xff")
    with pytest.raises(BehaviourError, match="utf-8"):
        read_scenario(path)


def test_the_example_of_the_readme_is_understood(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "bench/sink/README.md").read_text()
    text = readme.partition("```toml\n")[2].partition("```")[0]
    assert read_scenario(written(tmp_path, text)).listens


def test_every_setting_is_explained_and_spelt_by_its_name() -> None:
    for name, setting in SETTINGS.items():
        assert setting.shape.startswith(name)
        assert setting.about
    assert set(KEYWORDS) <= set(
        SETTINGS["keywords"].about.replace(")", ",").replace("(", ",").split(",")
    )
