"""The type ldap: a search in a directory, as a file of settings says (ldap_table(5)).

python-ldap, and with it the libldap that Postfix uses. An entry's attributes are taken as
ldap_table(5) has it: if it has a terminal one, nothing else of it counts; the values of a special
one name further entries (a DN) or searches (an LDAP URL), whose values come in its place; leaf
attributes count only in entries without a special one.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ldap
import ldapurl
from ldap.dn import escape_dn_chars
from ldap.filter import escape_filter_chars
from ldap.ldapobject import SimpleLDAPObject

from protocol.sasl.secret import Secret
from worker.config.table import TableConfigError
from worker.config.table_database import (
    Database,
    HostError,
    Hosts,
    QueryError,
    Source,
    seconds_left,
    split_host,
)
from worker.config.table_files import Clock, WatchedFile
from worker.config.table_query import Choice
from worker.config.table_settings import Known, TableSettings
from worker.config.table_templates import Parts, Template, read_template

PORT: Final = 389
ANY: Final = "(objectClass=*)"
DEEPEST: Final = 1000  # searches within searches: recursion_limit's default, as Postfix

_SASL: Final = frozenset({"sasl_authz_id", "sasl_mechs", "sasl_minssf", "sasl_realm"})
_TLS: Final = {  # names, and the options of libldap
    "tls_ca_cert_dir": ldap.OPT_X_TLS_CACERTDIR,
    "tls_ca_cert_file": ldap.OPT_X_TLS_CACERTFILE,
    "tls_cert": ldap.OPT_X_TLS_CERTFILE,
    "tls_key": ldap.OPT_X_TLS_KEYFILE,
    "tls_cipher_suite": ldap.OPT_X_TLS_CIPHER_SUITE,
}
_KNOWN: Final = Known(
    names=frozenset(
        {
            *("server_host", "server_port", "search_base", "timeout", "query_filter", "scope"),
            *("result_format", "result_filter", "domain", "result_attribute", "expansion_limit"),
            *("special_result_attribute", "terminal_result_attribute", "leaf_result_attribute"),
            *("bind", "bind_dn", "bind_pw", "recursion_limit", "size_limit", "dereference"),
            *("chase_referrals", "version", "start_tls", "tls_require_cert"),
            *_TLS,
        }
    ),
    ignored=frozenset({"cache", "cache_expiry", "cache_size", "debuglevel", "tls_random_file"}),
    unsupported=_SASL,
)
_SCOPES: Final = {"sub": ldap.SCOPE_SUBTREE, "base": ldap.SCOPE_BASE, "one": ldap.SCOPE_ONELEVEL}
_BINDS: Final = {"yes": True, "simple": True, "no": False, "none": False}

Ldap = Database[SimpleLDAPObject]


def open_ldap(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Ldap:
    """`ldap:/file`. Raises TableConfigError."""
    read = functools.partial(_read, environ=environ, clock=clock)
    return Ldap(spec, WatchedFile(spec, Path(name), clock, read))


def _read(
    text: str, place: str, *, environ: Mapping[str, str], clock: Clock
) -> tuple[Source[SimpleLDAPObject], list[str]]:
    """What the file says. Raises TableConfigError."""
    file = TableSettings(text, place, _KNOWN)
    driver = LdapDriver(file)
    result_format = file.text("result_format") or file.text("result_filter")  # its older name
    choice = Choice.of(file, driver.letters, result_format, environ, clock)
    return Source(choice, Hosts(driver, clock)), file.warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attributes:
    """Names of attributes, in lower case, by what becomes of them."""

    terminal: frozenset[str]
    leaf: frozenset[str]
    plain: frozenset[str]
    special: frozenset[str]

    @property
    def wanted(self) -> list[str]:
        """All of them."""
        return sorted(self.terminal | self.leaf | self.plain | self.special)


@dataclass(frozen=True, slots=True)
class _Search:
    """One search."""

    base: str
    scope: int
    filter: str
    wanted: list[str]
    must_exist: bool = False  # the base; else there is nothing found where it does not


class LdapDriver:
    """See Driver."""

    in_order = True  # as libldap has it

    def __init__(self, file: TableSettings) -> None:
        """Raises TableConfigError."""
        self._base = _template(file, "search_base", "")
        self._filter = _template(file, "query_filter", "mailacceptinggeneralid=%s")
        self.letters = self._base.letters | self._filter.letters
        self._attributes = _Attributes(
            terminal=_names(file, "terminal_result_attribute"),
            leaf=_names(file, "leaf_result_attribute"),
            plain=_names(file, "result_attribute", "maildrop"),
            special=_names(file, "special_result_attribute"),
        )
        if not self._attributes.wanted:
            raise file.wrong("no attribute to return", "result_attribute = name")
        scope = file.text("scope", "sub").lower()
        if scope not in _SCOPES:
            raise file.wrong(f"scope = {scope}", "sub, base or one")
        self._scope = _SCOPES[scope]
        bind = file.text("bind", "yes").lower()
        if bind not in _BINDS:
            raise file.wrong(f"bind = {bind} is not supported", "yes or no")
        self._binds = _BINDS[bind]
        self._dn, self._password = file.text("bind_dn"), Secret(file.text("bind_pw"))
        self._timeout = file.whole("timeout", 10, 1)
        self._size_limit = file.whole("size_limit", file.whole("expansion_limit", 0))
        self._recursion_limit = file.whole("recursion_limit", DEEPEST, 1)
        self._start_tls = file.is_yes("start_tls", default=False)
        self._options = _options(file)
        port = file.whole("server_port", PORT, 1)
        self.hosts = [_uri(text, port, file) for text in file.words("server_host", "localhost")]
        for host in range(len(self.hosts)):
            try:
                self._prepared(host)
            except HostError as exc:
                raise file.wrong(f"{exc}") from exc

    def connect(self, host: int, end: float) -> SimpleLDAPObject:
        """See Driver."""
        limit = min(float(self._timeout), seconds_left(end))
        connection = self._prepared(host)
        try:
            connection.set_option(ldap.OPT_NETWORK_TIMEOUT, limit)
            connection.set_option(ldap.OPT_TIMEOUT, limit)
            if self._start_tls:
                connection.start_tls_s()
            if self._binds:
                connection.simple_bind_s(self._dn, self._password.reveal())
        except ldap.LDAPError as exc:
            raise HostError(_why(exc)) from exc
        return connection

    def _prepared(self, host: int) -> SimpleLDAPObject:
        """What nobody has connected yet. Raises HostError for settings that libldap cannot use."""
        try:
            connection = ldap.initialize(self.hosts[host])
        except ldap.LDAPError as exc:
            raise HostError("server_host: an LDAP URL that libldap cannot use") from exc
        try:
            for option, value in self._options:
                connection.set_option(option, value)
        except (ldap.LDAPError, ValueError) as exc:  # it says no more than "option error"
            raise HostError("TLS cannot be set up: files or ciphers of no use") from exc
        return connection

    def ask(self, connection: SimpleLDAPObject, key: Parts, end: float) -> Iterable[str]:
        """See Driver."""
        first = _Search(
            self._base.expand(_quoted(key, escape_dn_chars), _quoted(key, escape_dn_chars)),
            self._scope,
            self._filter.expand(
                _quoted(key, escape_filter_chars), _quoted(key, escape_filter_chars)
            ),
            self._attributes.wanted,
            must_exist=not self._base.letters,  # as in Postfix
        )
        # Searches within searches: a stack and no recursion, for they may be a thousand deep.
        stack = [self._found(connection, first, end)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, str):
                yield found
            elif len(stack) >= self._recursion_limit:
                raise QueryError(f"more than {self._recursion_limit} searches within searches")
            else:
                stack.append(self._found(connection, found, end))

    def close(self, connection: SimpleLDAPObject) -> None:
        """See Driver."""
        with suppress(ldap.LDAPError):  # it was closed
            connection.unbind_s()

    def _found(
        self, connection: SimpleLDAPObject, search: _Search, end: float
    ) -> Iterator[str | _Search]:
        """The values that a search finds, and in between the searches that belong there."""
        for attributes in self._entries(connection, search, end):
            yield from self._of_entry(attributes, search)

    def _entries(
        self, connection: SimpleLDAPObject, search: _Search, end: float
    ) -> Iterator[dict[str, list[bytes]]]:
        """The attributes of each entry. Raises HostError, QueryError."""
        try:
            number = connection.search_ext(
                search.base,
                search.scope,
                search.filter,
                search.wanted,
                timeout=min(float(self._timeout), seconds_left(end)),
                sizelimit=self._size_limit,
            )
            while True:
                limit = min(float(self._timeout), seconds_left(end))
                kind, found = connection.result(number, all=0, timeout=limit)
                if kind == ldap.RES_SEARCH_ENTRY:
                    yield from (attributes for _, attributes in found)
                elif kind == ldap.RES_SEARCH_RESULT:
                    return
        except ldap.NO_SUCH_OBJECT as exc:
            if search.must_exist:
                raise QueryError(f'there is no search base "{search.base}"') from exc
        except _LOST as exc:
            raise HostError(_why(exc)) from exc
        except ldap.LDAPError as exc:
            raise QueryError(_why(exc)) from exc

    def _of_entry(
        self, attributes: Mapping[str, list[bytes]], search: _Search
    ) -> Iterator[str | _Search]:
        which = self._attributes
        found = {name.lower(): values for name, values in attributes.items() if values}
        if found.keys() & which.terminal:
            counts = which.terminal
        elif found.keys() & which.special:
            counts = which.plain | which.special
        else:
            counts = which.plain | which.leaf
        for name, values in found.items():
            if name not in counts:
                continue
            for value in values:
                text = value.decode("utf-8")
                if name in which.special and name not in which.terminal:
                    yield from self._further(text, search)
                else:
                    yield text

    def _further(self, text: str, search: _Search) -> Iterator[_Search]:
        """The search that the value of a special attribute stands for; none if it is neither an
        LDAP URL nor a DN, or if the URL wants nothing of what we do.
        """
        if not ldapurl.isLDAPUrl(text):
            yield _Search(text, ldap.SCOPE_BASE, ANY, search.wanted)
            return
        try:
            url = ldapurl.LDAPUrl(text)
        except ValueError as exc:
            raise QueryError(f'"{text}" is not an LDAP URL') from exc
        names = {name.lower() for name in url.attrs or ()}
        wanted = self._attributes.wanted
        if names and "*" not in names:
            wanted = [name for name in wanted if name in names]
        if wanted:
            scope = ldap.SCOPE_BASE if url.scope is None else url.scope
            yield _Search(url.dn or "", scope, url.filterstr or ANY, wanted)


_LOST = (
    *(ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.TIMEOUT, ldap.UNAVAILABLE, ldap.BUSY),
    *(ldap.LOCAL_ERROR, ldap.DECODING_ERROR),
)


def _template(file: TableSettings, name: str, default: str) -> Template:
    try:
        return read_template(file.text(name, default), name)
    except TableConfigError as exc:
        raise file.wrong(exc.why, exc.expected) from exc


def _quoted(key: Parts, escape: Callable[[str], str]) -> Parts:
    return Parts(escape(key.whole), escape(key.local), escape(key.domain))


def _names(file: TableSettings, name: str, default: str = "") -> frozenset[str]:
    """A list of attributes. One that is set to nothing is empty, whatever the default."""
    words = file.words(name) if file.is_set(name) else file.words(name, default)
    return frozenset(word.lower() for word in words)


def _uri(text: str, port: int, file: TableSettings) -> str:
    """The LDAP URL of a host. Raises TableConfigError."""
    if "://" not in text:
        try:
            host, number = split_host(text, port)
        except TableConfigError as exc:
            raise file.wrong(f"server_host: {exc.why}", "host, host:port or an LDAP URL") from exc
        return f"ldap://[{host}]:{number}" if ":" in host else f"ldap://{host}:{number}"
    if not ldapurl.isLDAPUrl(text):
        raise file.wrong(f"server_host = {text}", "ldap://, ldaps:// or ldapi://")
    return text


def _options(file: TableSettings) -> list[tuple[int, int | str]]:
    """Options of libldap for each connection. Raises TableConfigError."""
    version, dereference = file.whole("version", 3, 2), file.whole("dereference", 0)
    if version > 3:
        raise file.wrong(f"version = {version}", "2 or 3")
    if dereference > 3:
        raise file.wrong(f"dereference = {dereference}", "0, 1, 2 or 3")
    verify = file.is_yes("tls_require_cert", default=False)
    options: list[tuple[int, int | str]] = [
        (ldap.OPT_PROTOCOL_VERSION, version),
        (ldap.OPT_DEREF, dereference),
        (ldap.OPT_REFERRALS, int(_is_yes(file, "chase_referrals"))),
        (ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND if verify else ldap.OPT_X_TLS_NEVER),
        *((option, file.text(name)) for name, option in _TLS.items() if file.text(name)),
        (ldap.OPT_X_TLS_NEWCTX, 0),  # last: what came before holds for this connection
    ]
    return options


def _is_yes(file: TableSettings, name: str) -> bool:
    """A choice that is written as a number, too."""
    if file.text(name) in {"0", "1"}:
        return file.text(name) == "1"
    return file.is_yes(name, default=False)


def _why(exc: ldap.LDAPError) -> str:
    """libldap's words."""
    told = exc.args[0] if exc.args and isinstance(exc.args[0], dict) else {}
    words = [str(told[name]) for name in ("desc", "info") if told.get(name)]
    return ": ".join(words) or type(exc).__name__
