"""Grades and exclusions, as the library understands the lists that they come to."""

import pytest
from OpenSSL import SSL

from worker.config.config import Config
from worker.config.values import BadValueError
from worker.tls.ciphers import (
    CipherLists,
    Grade,
    parse_exclusions,
    parse_grade,
    parse_list,
)
from worker.tls.policy import Level

DEFAULTS = CipherLists.from_config(Config.from_mapping({}))
WITH_NULL = CipherLists.from_config(Config.from_mapping({"postrio_tls_allow_null": "yes"}))
WITH_TLS = [level for level in Level if level is not Level.NONE]
PROVED = [level for level in Level if level.authenticated]


def library(ciphers: str) -> set[str]:
    """The suites of TLS 1.2 and below in a list, when nothing is too weak."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_cipher_list(f"{ciphers}:@SECLEVEL=0".encode())
    suites = SSL.Connection(context).get_cipher_list()
    return {name for name in suites if not name.startswith("TLS_")}


def test_s113_words_are_grades_in_any_case_and_what_left_the_library_means_medium() -> None:
    assert parse_grade("high") is parse_grade("HIGH") is Grade.HIGH
    assert parse_grade("medium") is parse_grade("Low") is parse_grade("export") is Grade.MEDIUM
    assert parse_grade("null") is Grade.NULL


@pytest.mark.parametrize("text", ["", "strong", "high medium", "HIGH:!aNULL"])
def test_what_is_no_grade_is_named(text: str) -> None:
    with pytest.raises(BadValueError, match=f'"{text}" is no cipher grade'):
        parse_grade(text)


def test_s111_the_default_of_high_is_the_librarys_without_what_is_broken() -> None:
    broken = "SEED:!IDEA:!3DES:!RC2:!RC4:!RC5:!kDH:!kECDH:!aDSS:!MD5"
    assert library(DEFAULTS.high) == library(f"HIGH:!{broken}")
    assert library(DEFAULTS.medium) == library(f"HIGH:MEDIUM:!{broken}")


@pytest.mark.parametrize("grade", [Grade.HIGH, Grade.MEDIUM])
@pytest.mark.parametrize("level", WITH_TLS)
def test_s112_anonymous_suites_are_there_only_where_nothing_must_be_proved(
    level: Level, grade: Grade
) -> None:
    anonymous = library(DEFAULTS.suites(grade, level, ())) & library("aNULL")
    assert bool(anonymous) is not level.authenticated


@pytest.mark.parametrize("grade", [Grade.HIGH, Grade.MEDIUM])
@pytest.mark.parametrize("level", WITH_TLS)
def test_suites_without_encryption_are_never_there_whatever_a_list_says(
    level: Level, grade: Grade
) -> None:
    lists = CipherLists(high="ALL:eNULL", medium="eNULL:HIGH", null="eNULL", allow_null=True)
    assert library(lists.suites(grade, level, ())) & library("eNULL") == set()
    assert library(lists.suites(grade, level, ()))


@pytest.mark.parametrize("level", PROVED)
def test_s115_null_is_refused_unless_it_is_allowed_and_then_without_anonymous_suites(
    level: Level,
) -> None:
    with pytest.raises(BadValueError, match="postrio_tls_allow_null"):
        DEFAULTS.suites(Grade.NULL, level, ())
    assert library(WITH_NULL.suites(Grade.NULL, level, ())) == library("eNULL:!aNULL")


def test_null_cannot_be_had_where_encryption_is_all_that_is_asked_for() -> None:
    with pytest.raises(BadValueError, match="no cipher suite is left of grade null"):
        WITH_NULL.suites(Grade.NULL, Level.ENCRYPT, ())


def test_an_exclusion_takes_out_what_the_library_calls_so() -> None:
    before = library(DEFAULTS.suites(Grade.MEDIUM, Level.ENCRYPT, ()))
    after = library(DEFAULTS.suites(Grade.MEDIUM, Level.ENCRYPT, ("AES128", "kRSA+AES", "NOTHING")))
    assert after == before - library("AES128") - library("kRSA+AES")
    assert before & library("AES128")
    assert before & library("kRSA+AES")


def test_exclusions_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(BadValueError, match="no cipher suite is left of grade high without ALL"):
        DEFAULTS.suites(Grade.HIGH, Level.MAY, ("ALL",))


def test_exclusions_are_words() -> None:
    assert parse_exclusions("aNULL, MD5:DES  kDH+aRSA") == ("aNULL", "MD5", "DES", "kDH+aRSA")
    assert parse_exclusions("") == ()


@pytest.mark.parametrize("word", ["!MD5", "+RC4", "-DES", "@STRENGTH", "a;b", "é"])
def test_an_exclusion_with_an_operator_is_an_error(word: str) -> None:
    with pytest.raises(BadValueError, match="cannot be excluded") as caught:
        parse_exclusions(f"MD5 {word}")
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("ALL:!EXPORT:!LOW:!MEDIUM:+RC4:@STRENGTH", "HIGH, MEDIUM !SSLv2", "DEFAULT@SECLEVEL=1"),
        *("ECDHE-RSA-AES128-GCM-SHA256", "eNULL", "HIGH:@SECLEVEL=2"),
    ],
)
def test_lists_of_former_postfixes_are_lists(text: str) -> None:
    assert parse_list(text) == text


@pytest.mark.parametrize("text", ["", "RC4", "NOTHING", "HIGH:bad!", "HIGH:@SECLEVEL=9", "HIGH:;"])
def test_what_the_library_finds_no_suite_in_is_an_error(text: str) -> None:
    with pytest.raises(BadValueError, match="openssl-ciphers"):
        parse_list(text)
