"""What the configuration says about logging in: where, as whom, and by which mechanisms.

Start at `SaslClient.credentials`. What is said then is in `worker/delivery/authentication.py`.
"""

import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from protocol.address import split_extension
from protocol.request import Protocol
from protocol.sasl.mechanisms import SECURITY_OPTIONS, Merit, Proof
from worker.config.config import Config, ConfigError, Problem
from worker.config.match_list import StringList
from worker.config.tables import Maps, TableError
from worker.sasl.credentials import Credentials, read_entry
from worker.sasl.refusals import Refusals, refusal_path
from worker.sasl.tokens import Tokens, command_tokens
from worker.status.events import Emit
from worker.tls.policy import TlsFacts, Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslClient:
    """Logging in under one configuration, for one protocol. Tests make theirs with keywords."""

    passwords: Maps  # smtp_sasl_password_maps
    delimiter: str = ":"  # smtp_sasl_password_result_delimiter
    by_sender: bool = False  # smtp_sender_dependent_authentication, of SMTP
    extension: str = ""  # recipient_delimiter: for addresses of senders
    # smtp_sasl_security_options; ..._tls_security_options; ..._tls_verified_security_options
    clear_demands: Merit = Merit.NOPLAINTEXT | Merit.NOANONYMOUS
    tls_demands: Merit = Merit.NOPLAINTEXT | Merit.NOANONYMOUS
    verified_demands: Merit = Merit.NOPLAINTEXT | Merit.NOANONYMOUS
    filter: StringList | None = None  # smtp_sasl_mechanism_filter; None: all
    send_authzid: bool = False  # send_cyrus_sasl_authzid
    dummy_mail_auth: bool = False  # smtp_send_dummy_mail_auth
    soft_bounce: bool = True  # smtp_sasl_auth_soft_bounce
    tokens: Tokens | None = None  # smtp_sasl_path, with smtp_sasl_type = postrio
    refusals: Refusals | None = None  # smtp_sasl_auth_cache_name; None: none are remembered
    shared: Path | None = None  # the file that they are to be shared in; see share()
    warnings: Sequence[str] = field(default=())

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self | None:
        """Read the smtp_ or lmtp_ parameters; None: there is no logging in. Raises ConfigError."""

        def name(parameter: str) -> str:
            return config.mirror(parameter, protocol)

        if not config.boolean(name("smtp_sasl_auth_enable")):
            return None
        passwords = config.maps(name("smtp_sasl_password_maps"))
        if not passwords:
            why = f"needs {name('smtp_sasl_password_maps')}, which is empty"
            raise _problem(config, name("smtp_sasl_auth_enable"), why, "tables with user:password")

        def demands(parameter: str) -> Merit:
            merit = Merit.NONE
            for word in config.words(name(parameter)):
                merit |= SECURITY_OPTIONS[word]
            return merit

        warnings = []
        refusals = shared = None
        cache = name("smtp_sasl_auth_cache_name")
        if config.text(cache):
            refusals = Refusals(config.seconds(name("smtp_sasl_auth_cache_time")))
            shared = refusal_path(config.text(cache))
            if shared is None:
                warnings.append(
                    f"{cache} = {config.text(cache)}: not type:/path/name; each process remembers"
                    " for itself which logins were refused"
                )
        listed = name("smtp_sasl_mechanism_filter")
        return cls(
            passwords=passwords,
            delimiter=config.text(name("smtp_sasl_password_result_delimiter")),
            by_sender=protocol is Protocol.SMTP
            and config.boolean("smtp_sender_dependent_authentication"),
            extension=config.text("recipient_delimiter"),
            clear_demands=demands("smtp_sasl_security_options"),
            tls_demands=demands("smtp_sasl_tls_security_options"),
            verified_demands=demands("smtp_sasl_tls_verified_security_options"),
            filter=config.matches(listed) if config.text(listed) else None,
            send_authzid=config.boolean("send_cyrus_sasl_authzid"),
            dummy_mail_auth=config.boolean(name("smtp_send_dummy_mail_auth")),
            soft_bounce=config.boolean(name("smtp_sasl_auth_soft_bounce")),
            tokens=_tokens(config, name("smtp_sasl_type"), name("smtp_sasl_path")),
            refusals=refusals,
            shared=shared,
            warnings=tuple(warnings),
        )

    def share(self, emit: Emit) -> None:
        """Open, or make, the file of refused logins, if there is to be one; see close()."""
        if self.refusals is not None and self.shared is not None:
            self.refusals.share(self.shared, emit)

    def close(self) -> None:
        """Give back what is held open. All goes on without it."""
        if self.refusals is not None:
            self.refusals.close()

    async def credentials(self, *, sender: str, host: str, nexthop: str) -> Credentials | None:
        """As whom to log in at a server; None: not at all, and mail goes out all the same.

        `sender`: the reverse-path in its internal form. `host`: the server's name. `nexthop`: as it
        stands in the request. Raises TableError for a table or an entry in trouble.
        """
        for key in self._keys(sender, host, nexthop):
            value = await self.passwords.find(key)
            if value is not None:
                found = read_entry(value, self.delimiter, key)
                if self.send_authzid:
                    return Credentials(found.user, found.secret, found.user)
                return found
        return None

    def mistakes(self) -> Iterator[str]:
        """What is wrong with entries of the tables, as far as they can be listed.

        For people who want to know before mail is deferred. Raises TableError.
        """
        for key, value in self.passwords.entries():
            try:
                read_entry(value, self.delimiter, key)
            except TableError as exc:
                yield str(exc)

    def _keys(self, sender: str, host: str, nexthop: str) -> list[str]:
        """What the tables are asked for, in this order (S086)."""
        keys = []
        local, at, domain = sender.rpartition("@")
        if self.by_sender and sender:
            keys.append(sender)
            user, extension = split_extension(local, self.extension)
            if at and extension:
                keys.append(f"{user}@{domain}")
            if at:
                keys.append(f"@{domain}")
        return [*keys, host, nexthop]

    def demands(self, tls: TlsFacts | None) -> Merit:
        """What a mechanism must be good for in a session that is so secure."""
        if tls is None:
            return self.clear_demands
        return self.verified_demands if tls.trust is Trust.VERIFIED else self.tls_demands

    def proofs(self, credentials: Credentials) -> Collection[Proof]:
        """What we can prove who we are with."""
        if credentials.secret:
            return (Proof.PASSWORD, Proof.TOKEN)
        if self.tokens is not None:
            return (Proof.TOKEN,)
        return (Proof.CERTIFICATE, Proof.TICKET)

    async def allowed(self, offered: Sequence[str]) -> list[str]:
        """Those of the mechanisms that the filter lets pass. Raises TableError."""
        if self.filter is None:
            return list(offered)
        return [name for name in offered if await self.filter.matches(name)]


def _tokens(config: Config, kind: str, path: str) -> Tokens | None:
    if config.choice(kind) != "postrio" or not config.text(path):
        return None
    expected = "an absolute path of a program, and its first arguments"
    try:
        command = shlex.split(config.text(path))
    except ValueError as exc:
        raise _problem(config, path, f"{exc}", expected) from exc
    if not command or not Path(command[0]).is_absolute():
        raise _problem(config, path, "not an absolute path", expected)
    if not os.access(command[0], os.X_OK) or Path(command[0]).is_dir():
        raise _problem(config, path, f"{command[0]} cannot be executed", expected)
    return command_tokens(command)


def _problem(config: Config, parameter: str, why: str, expected: str) -> ConfigError:
    setting = config.settings.get(parameter)
    problem = Problem(
        file=setting.file if setting else "default",
        line=setting.line if setting else 0,
        parameter=parameter,
        value=config.text(parameter),
        why=why,
        expected=expected,
    )
    return ConfigError([problem])
