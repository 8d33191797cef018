"""Entries of smtp_tls_policy_maps: each attribute, and each way to get one wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.values import BadValueError
from worker.tls.ciphers import Grade
from worker.tls.entry import Entry
from worker.tls.policy import Level, Version

WITH_TLS = [level for level in Level if level is not Level.NONE]


@pytest.mark.parametrize("level", Level)
def test_a_level_alone_leaves_the_rest_to_main_cf(level: Level) -> None:
    expected = Entry(level=level)
    for text in (level.word, level.word.upper(), f" , {level.word},\t"):
        assert Entry.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("may protocols=TLSv1.2", Entry(level=Level.MAY, versions=frozenset({Version.TLSV1_2}))),
        (
            "encrypt protocols=>=TLSv1.2:<=TLSv1.2",
            Entry(level=Level.ENCRYPT, versions=frozenset({Version.TLSV1_2})),
        ),
        ("may CIPHERS=High", Entry(level=Level.MAY, grade=Grade.HIGH)),
        ("may exclude=MD5:aNULL", Entry(level=Level.MAY, exclude=("MD5", "aNULL"))),
        ("may exclude=", Entry(level=Level.MAY, exclude=())),
        (
            "secure match=nexthop:.Example.NET match=MX.example.org|hostname",
            Entry(
                level=Level.SECURE,
                match=("nexthop", ".example.net", "mx.example.org", "hostname"),
            ),
        ),
        (
            "verify match=bücher.example",
            Entry(level=Level.VERIFY, match=("xn--bcher-kva.example",)),
        ),
        ("fingerprint match=AA:BB|cc", Entry(level=Level.FINGERPRINT, match=("AA:BB", "cc"))),
        ("may servername=MX.Example.", Entry(level=Level.MAY, servername="mx.example")),
        ("may servername=hostname", Entry(level=Level.MAY, servername="hostname")),
        ("may servername=", Entry(level=Level.MAY, servername="")),
        (
            "secure tafile=/a.pem, tafile=/b.pem",
            Entry(level=Level.SECURE, trust_files=("/a.pem", "/b.pem")),
        ),
        ("may connection_reuse=no", Entry(level=Level.MAY, shared=False)),
        ("may connection_reuse=no connection_reuse=YES", Entry(level=Level.MAY, shared=True)),
        ("encrypt wrappermode=yes", Entry(level=Level.ENCRYPT, wrapper=True)),
        ("may wrappermode=no", Entry(level=Level.MAY, wrapper=False)),
        ("may enable_rpk=yes", Entry(level=Level.MAY)),
        (
            "may { protocols = TLSv1.2, TLSv1.3 }",
            Entry(level=Level.MAY, versions=frozenset({Version.TLSV1_2, Version.TLSV1_3})),
        ),
        (
            "secure match=mx.a.example servername=hostname policy_type=sts policy_ttl=86400"
            " policy_domain=a.example {policy_string = version: STSv1} {policy_string=mx: *.a}"
            " mx_host_pattern=*.a",
            Entry(level=Level.SECURE, match=("mx.a.example",), servername="hostname"),
        ),
        ("may policy_type=sts policy_failure=sts-policy-fetch-error", Entry(level=Level.MAY)),
        ("none match=x anything {", Entry(level=Level.NONE)),
    ],
)
def test_an_attribute_says_what_differs_from_main_cf(text: str, expected: Entry) -> None:
    assert Entry.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "invalid empty policy"),
        (" ,, ", "invalid empty policy"),
        ("encrypted", 'invalid security level "encrypted"'),
        ("MUST", 'invalid security level "MUST"'),
        ("protocols=TLSv1.2", 'invalid security level "protocols=TLSv1.2"'),
        ("dane", 'the security level "dane" is not supported yet'),
        ("dane-only", 'the security level "dane-only" is not supported yet'),
        ("half-dane", 'the security level "half-dane" is not supported yet'),
        ("may encrypt", 'malformed attribute/value pair "encrypt"'),
        ("may =x", 'malformed attribute/value pair "=x"'),
        ("may {a b = c}", 'malformed attribute/value pair "{a b = c}"'),
        ("may {exclude = a}b", 'text after the braces of "{exclude = a}b"'),
        ("may {exclude = a", "braces are not balanced"),
        ("may exclude=a}", "braces are not balanced"),
        ("may }exclude=a{", "braces are not balanced"),
        ("may protcols=TLSv1.2", 'invalid attribute name: "protcols"'),
        ("may protocols=", 'attribute "protocols" has empty value'),
        ("may protocols=TLSv9", 'attribute "protocols" has bad value: "TLSv9"'),
        ("may protocols=SSLv3", 'attribute "protocols" has bad value: no protocol version'),
        ("may protocols=TLSv1.2, TLSv1.3", 'malformed attribute/value pair "TLSv1.3"'),
        ("may ciphers=", 'attribute "ciphers" has empty value'),
        ("may ciphers=best", 'attribute "ciphers" has bad value: "best" is no cipher grade'),
        ("may exclude=!MD5", 'attribute "exclude" has bad value: "!MD5" cannot be excluded'),
        ("may match=a.example", 'attribute "match" invalid at security level "may"'),
        ("encrypt match=nexthop", 'attribute "match" invalid at security level "encrypt"'),
        ("secure match=", 'attribute "match" has empty value'),
        ("secure match=a::b", 'attribute "match" has bad value: an empty word'),
        ("secure match=*.example", 'attribute "match" has bad value: "*.example" is no name'),
        ("secure match=.", 'attribute "match" has bad value: "." is no name'),
        ("fingerprint match=aa||bb", 'attribute "match" has bad value: an empty word'),
        ("may servername=[::1]", '"[::1]" specifies an invalid hostname'),
        ("may servername=192.0.2.1", '"192.0.2.1" specifies an invalid hostname'),
        ("fingerprint tafile=/a", 'attribute "tafile" invalid at security level "fingerprint"'),
        ("secure tafile=", 'attribute "tafile" has empty value'),
        ("may connection_reuse=maybe", 'attribute "connection_reuse" has bad value'),
        ("may enable_rpk=", 'attribute "enable_rpk" has empty value'),
        ("may enable_rpk=maybe", 'attribute "enable_rpk" has bad value'),
        ("may wrappermode=yes", 'attribute "wrappermode" has bad value'),
        ("encrypt wrappermode=1", 'attribute "wrappermode" has bad value'),
        ("secure policy_failure=sts-policy-invalid", "the policy of the domain failed"),
        *(
            (f"encrypt {name}={value} {name}={value}", f'"{name}" is specified multiple times')
            for name, value in {
                "protocols": "TLSv1.2",
                "ciphers": "high",
                "exclude": "MD5",
                "servername": "a.example",
                "wrappermode": "no",
            }.items()
        ),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_it(text: str, why: str) -> None:
    with pytest.raises(BadValueError) as caught:
        Entry.parse(text)
    assert why in caught.value.why
    assert caught.value.expected


PIECES = st.sampled_from(
    [
        *("none", "may", "encrypt", "fingerprint", "verify", "secure", "dane", " ", ",", "{", "}"),
        *("=", "match", "protocols", "servername", "tafile", "exclude", ":", "|", "TLSv1.2", "a.b"),
        *("wrappermode", "yes", "policy_type", "\N{SNOWMAN}", "\0", "xn--", "."),
    ]
)


@given(st.sampled_from(WITH_TLS), st.lists(PIECES, max_size=12).map("".join) | st.text())
def test_an_entry_never_means_less_than_its_first_word(level: Level, rest: str) -> None:
    with contextlib.suppress(BadValueError):
        assert Entry.parse(f"{level.word} {rest}").level is level
