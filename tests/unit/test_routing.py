"""transport_maps in transport(5) order, relayhost, default_transport, and what needs no worker."""

from collections.abc import Coroutine
from typing import TypeVar

import pytest

from protocol.outcome import Action
from protocol.request import Protocol
from worker.config.config import Config
from worker.config.tables import TableError
from worker.queue.routing import Delivery, ParentDomains, Route, Router, Verdict

T = TypeVar("T")


def finish(coroutine: Coroutine[object, object, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    result: T = stopped.value.value
    return result


class Table:
    """Entries in memory; remembers what it was asked."""

    def __init__(self, **entries: str) -> None:
        self.entries = {key.replace("__at__", "@"): text for key, text in entries.items()}
        self.asked: list[tuple[str, bool]] = []

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """See Lookup."""
        self.asked.append((key, partial))
        return self.entries.get(key)


class BrokenTable:
    """Has no answer."""

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """See Lookup."""
        raise TableError("table is away")


def route(router: Router, address: str) -> Route:
    """The route of one address."""
    return finish(router.route(address))


def smtp(nexthop: str) -> Delivery:
    """A delivery by the transport smtp."""
    return Delivery("smtp", nexthop, Protocol.SMTP)


# --- without a table -----------------------------------------------------------------------------


def test_without_any_setting_the_domain_is_the_nexthop() -> None:
    assert route(Router(), "user@Two.Example") == smtp("two.example")
    assert route(Router(), '"a@b"@two.example') == smtp("two.example")
    assert route(Router(), "user@[192.0.2.1]") == smtp("[192.0.2.1]")


def test_an_internationalised_domain_is_one_destination_in_any_case() -> None:
    assert route(Router(), "user@BÜCHER.example") == smtp("bücher.example")


def test_a_recipient_without_a_domain_is_at_our_origin() -> None:
    assert route(Router(origin="Here.Example"), "root") == smtp("here.example")


def test_relayhost_takes_everything_verbatim() -> None:
    router = Router(relayhost="[Hub.example]:587")
    assert route(router, "user@two.example") == smtp("[Hub.example]:587")


def test_a_nexthop_of_default_transport_comes_before_relayhost() -> None:
    router = Router(relayhost="[hub.example]", default_transport="relay:[other.example]")
    expected = Delivery("relay", "[other.example]", Protocol.SMTP)
    assert route(router, "user@two.example") == expected


def test_lmtp_can_be_the_default_transport() -> None:
    router = Router(default_transport="lmtp:unix:/run/dovecot/lmtp")
    expected = Delivery("lmtp", "unix:/run/dovecot/lmtp", Protocol.LMTP)
    assert route(router, "user@two.example") == expected


def test_the_memory_of_routes_is_bounded() -> None:
    router = Router()
    for number in range(25_000):
        route(router, f"user@d{number}.example")
    assert len(router._known) <= 10_000


# --- the order of a search -----------------------------------------------------------------------


def test_the_search_goes_from_the_whole_address_to_the_wild_card() -> None:
    table = Table()
    route(Router(tables=table, delimiter="+"), "User+Ext@a.b.Example")
    assert table.asked == [
        ("User+Ext@a.b.Example", False),
        ("user@a.b.example", True),
        ("a.b.example", True),
        (".b.example", True),
        (".example", True),
        ("*", True),
    ]


def test_with_parent_domain_matches_subdomains_parents_are_asked_without_a_dot() -> None:
    table = Table()
    route(Router(tables=table, parents=ParentDomains.PLAIN), "user@a.b.example")
    assert [key for key, _ in table.asked[1:]] == ["a.b.example", "b.example", "example", "*"]


def test_an_address_literal_has_no_parent_domains() -> None:
    table = Table()
    route(Router(tables=table), "user@[192.0.2.1]")
    assert [key for key, _ in table.asked] == ["user@[192.0.2.1]", "[192.0.2.1]", "*"]


def test_a_delimiter_at_the_start_of_a_local_part_sets_no_extension_off() -> None:
    table = Table()
    route(Router(tables=table, delimiter="+"), "+x@one.example")
    assert [key for key, _ in table.asked] == ["+x@one.example", "one.example", ".example", "*"]


@pytest.mark.parametrize(
    "local", ["list-request", "Owner-list", "Mailer-Daemon", "double-bounce", "a+b-request"]
)
def test_addresses_that_have_a_delimiter_in_their_name_have_no_extension(local: str) -> None:
    table = Table()
    route(Router(tables=table, delimiter="+-"), f"{local}@one.example")
    whole = f"{local}@one.example"
    assert [key for key, _ in table.asked] == [whole, "one.example", ".example", "*"]


@pytest.mark.parametrize(
    ("local", "user"),
    [("postmaster+x", "postmaster"), ("-request", None), ("list-requests", "list"), ("u-", "u")],
)
def test_other_addresses_have_one(local: str, user: str | None) -> None:
    table = Table()
    route(Router(tables=table, delimiter="+-"), f"{local}@one.example")
    asked = [key for key, _ in table.asked if key.endswith("@one.example")]
    assert asked[1:] == ([f"{user}@one.example"] if user else [])


def test_an_owner_is_split_where_the_hyphen_is_no_delimiter() -> None:
    table = Table()
    route(Router(tables=table, delimiter="+"), "owner-list+x@one.example")
    assert table.asked[1] == ("owner-list@one.example", True)


@pytest.mark.parametrize("kind", ["regexp", "pcre"])
def test_a_pattern_sees_the_letters_of_an_address_as_they_are(kind: str) -> None:
    table = f"{kind}:{{{{/^User@A/i smtp:[gate.example]}}}}"
    router = Router.from_config(Config.from_mapping({"transport_maps": table}))
    assert route(router, "User@A.example") == smtp("[gate.example]")
    assert route(router, "user@a.example") == smtp("a.example")


@pytest.mark.parametrize("tables", [{}, {"transport_maps": "static:smtp:[gate.example]"}])
def test_mail_to_the_double_bounce_address_is_discarded(tables: dict[str, str]) -> None:
    names = {"myhostname": "Host.example", "myorigin": "here.example", "relayhost": "r.example"}
    router = Router.from_config(Config.from_mapping({**names, **tables}))
    for _ in range(2):  # what is known of a domain does not hold for this address
        assert isinstance(route(router, "user@host.example"), Delivery)
        found = route(router, "Double-Bounce@HOST.example")
        assert isinstance(found, Verdict)
        assert (found.program, found.action, found.dsn) == ("qmgr", Action.SENT, "2.0.0")
        assert isinstance(route(router, "double-bounce@other.example"), Delivery)


def test_the_null_recipient_is_looked_up_as_its_stand_in() -> None:
    table = Table()
    route(Router(tables=table, origin="here.example"), "")
    assert table.asked[0] == ("MAILER-DAEMON@here.example", False)


def test_the_first_match_wins() -> None:
    table = Table(
        **{
            "user@one.example": "smtp:[user.example]",
            "one.example": "smtp:[domain.example]",
            ".example": "smtp:[parent.example]",
            "*": "smtp:[any.example]",
        }
    )
    router = Router(tables=table)
    assert route(router, "user@one.example") == smtp("[user.example]")
    assert route(router, "other@one.example") == smtp("[domain.example]")
    assert route(router, "other@two.example") == smtp("[parent.example]")
    assert route(router, "other@two.test") == smtp("[any.example]")


# --- forms of a result ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("relay:[gw.example]:26", Delivery("relay", "[gw.example]:26", Protocol.SMTP)),
        ("relay:", Delivery("relay", "one.example", Protocol.SMTP)),
        ("relay", Delivery("relay", "one.example", Protocol.SMTP)),
        (":[gw.example]", smtp("[gw.example]")),
        (":", smtp("[hub.example]")),
        ("", smtp("[hub.example]")),
        ("lmtp:unix:/run/lmtp", Delivery("lmtp", "unix:/run/lmtp", Protocol.LMTP)),
        ("lmtp:inet:[::1]:24", Delivery("lmtp", "inet:[::1]:24", Protocol.LMTP)),
    ],
)
def test_each_half_of_a_result_may_be_left_out(result: str, expected: Route) -> None:
    router = Router(tables=Table(**{"one.example": result}), relayhost="[hub.example]")
    assert route(router, "user@one.example") == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("error:5.1.1 nobody here", ("error", Action.BOUNCED, "5.1.1", "nobody here")),
        ("error:nobody here", ("error", Action.BOUNCED, "5.0.0", "nobody here")),
        ("error:4.1.1 odd class", ("error", Action.BOUNCED, "5.0.0", "odd class")),
        ("error:", ("error", Action.BOUNCED, "5.0.0", "Address is undeliverable")),
        ("retry:4.3.2 not today", ("error", Action.DEFERRED, "4.3.2", "not today")),
        ("retry:a: b", ("error", Action.DEFERRED, "4.0.0", "a: b")),
        ("discard:spam trap", ("discard", Action.SENT, "2.0.0", "spam trap")),
        ("uucp:x", ("error", Action.DEFERRED, "4.3.0", "mail transport unavailable")),
        ("[gw.example]", ("error", Action.DEFERRED, "4.3.0", "mail transport unavailable")),
    ],
)
def test_some_results_are_decided_without_a_worker(
    result: str, expected: tuple[str, Action, str, str]
) -> None:
    verdict = route(Router(tables=Table(**{"one.example": result})), "user@one.example")
    assert verdict == Verdict(*expected)


def test_a_table_in_trouble_defers() -> None:
    verdict = route(Router(tables=BrokenTable()), "user@one.example")
    assert verdict == Verdict("error", Action.DEFERRED, "4.3.0", "transport_maps: table is away")


def test_an_unknown_default_transport_defers() -> None:
    verdict = route(Router(default_transport="uucp"), "user@one.example")
    assert isinstance(verdict, Verdict)
    assert verdict.action is Action.DEFERRED


def test_the_router_of_a_configuration_obeys_it() -> None:
    config = Config.from_mapping(
        {
            "transport_maps": "inline:{ {example.com=relay:[a.example]} }",
            "relayhost": "[hub.example]",
            "recipient_delimiter": "+",
            "parent_domain_matches_subdomains": "transport_maps",
        }
    )
    router = Router.from_config(config)
    relayed = Delivery("relay", "[a.example]", Protocol.SMTP)
    assert route(router, "user@deep.sub.example.com") == relayed
    assert route(router, "user@other.example") == smtp("[hub.example]")
