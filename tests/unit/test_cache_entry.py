"""Labels and properties of cached sessions: what goes in comes out, and nothing odd is believed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cache_entry import DestinationProperty, SessionProperty, label
from protocol.capabilities import Capabilities
from protocol.errors import RemoteProtocolError

WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
NUMBER = st.integers(0, 10**18 - 1)
CAPABILITIES = st.builds(
    Capabilities,
    pipelining=st.booleans(),
    smtputf8=st.booleans(),
    dsn=st.booleans(),
    size_announced=st.booleans(),
    size_limit=NUMBER,
    xforward=st.frozensets(WORD),
    auth=st.lists(WORD, max_size=3).map(tuple),
    mail_max=NUMBER,
    discarded=st.lists(WORD, max_size=3).map(tuple),
    greeting_name=WORD | st.just(""),
)
SESSION = SessionProperty(
    uses=3, born=12.5, security="policy login", tls="", capabilities=Capabilities(pipelining=True)
)


@given(st.integers(0, 10**6), st.floats(0, 1e9), CAPABILITIES)
def test_a_session_property_comes_back_as_it_was(
    uses: int, born: float, capabilities: Capabilities
) -> None:
    known = replace(SESSION, uses=uses, born=born, capabilities=capabilities)
    found = SessionProperty.decode(known.encode())
    assert replace(found, born=born) == known
    assert found.born == pytest.approx(born, abs=1e-6)


@given(WORD, WORD, st.integers(0, 65_535), NUMBER)
def test_a_destination_property_comes_back_as_it_was(
    host: str, address: str, port: int, preference: int
) -> None:
    whole = DestinationProperty(host=host, address=address, port=port, preference=preference)
    assert DestinationProperty.decode(whole.encode()) == whole


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n\n", "format=2\n\n", "format=1\nreuse_count=1\n\n", "reuse_count=1\n"),
        SESSION.encode()[:-1],
        SESSION.encode().replace("format=2", "format=1"),
        SESSION.encode().replace("security=policy login\n", ""),
        SESSION.encode().replace("pipelining=1\n", ""),
        SESSION.encode().replace("pipelining=1", "pipelining=yes"),
        SESSION.encode().replace("reuse_count=3", "reuse_count=-3"),
        SESSION.encode().replace("connect_time=12.500000", "connect_time=nan"),
        SESSION.encode().replace("connect_time=12.500000", "connect_time=1e999"),
        SESSION.encode()[:-1] + "more=1\n\n",
        SESSION.encode()[:-1] + "dsn=1\n\n",
        # What a Postfix process would have written.
        "reuse_count=1\nendpoint_features=15\nexpire_time=1700000000\n\n",
    ],
)
def test_a_property_that_is_odd_is_no_session(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        SessionProperty.decode(text)


def test_a_line_end_in_a_value_makes_no_second_line() -> None:
    capabilities = Capabilities(greeting_name="mx\npipelining=1")
    text = replace(SESSION, capabilities=capabilities).encode()
    assert SessionProperty.decode(text).capabilities.greeting_name == "mx?pipelining=1"


def test_labels_differ_wherever_a_field_does() -> None:
    assert label("smtp", "example.com", 25) == "postrio\nsmtp\nexample.com\n25\n"
    fields = [("a", "b"), ("ab", ""), ("", "ab"), ("a\nb", ""), ("*", ""), ("", ""), ("a", "b", "")]
    assert len({label(*each) for each in fields}) == len(fields)
