"""Each smtp_ parameter and its lmtp_ twin, set to different values: which one is used (S172).

Made from the table, so a new pair is tested by being there. What a protocol uses is all that its
components read from a configuration.
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from types import FunctionType

import pytest

from protocol.request import Protocol
from tests.unit.test_rows import without_effect_yet
from worker.config.config import Config
from worker.config.match_list import StringList
from worker.config.parameters import PARAMETERS, TRANSPORT_SUFFIXES, Kind, Parameter
from worker.config.tables import Maps
from worker.delivery.reuse import ReusePolicy
from worker.delivery.settings import DeliverySettings
from worker.network.network import NetworkSettings
from worker.queue.settings import TransportSettings
from worker.sasl.client import SaslClient
from worker.tls.settings import TlsSettings

PAIRS = {row.name: row.mirror.name for row in PARAMETERS.values() if row.mirror is not None} | {
    f"smtp_{suffix}": f"lmtp_{suffix}" for suffix in TRANSPORT_SUFFIXES
}

# Two legal values where the kind of the parameter alone does not tell any.
VALUES = {
    "smtp_tcp_port": ("2525", "2424"),
    "smtp_bind_address": ("127.0.0.2", "127.0.0.3"),
    "smtp_bind_address6": ("::2", "::3"),
    "smtp_dns_support_level": ("disabled", "enabled"),
    "smtp_sasl_password_result_delimiter": ("/", "%"),
    "smtp_sasl_auth_cache_name": ("", "on"),
    "smtp_sasl_path": ("/bin/true", "/bin/false"),
    "smtp_sasl_type": ("cyrus", "postrio"),
    "smtp_tls_ciphers": ("medium", "high"),
    "smtp_tls_mandatory_ciphers": ("medium", "high"),
    "smtp_tls_exclude_ciphers": ("AES128", "AES256"),
    "smtp_tls_mandatory_exclude_ciphers": ("AES128", "AES256"),
    "smtp_tls_fingerprint_cert_match": ("11" * 32, "22" * 32),
    "smtp_tls_fingerprint_digest": ("sha256", "sha512"),
    "smtp_tls_protocols": (">=TLSv1.2", ">=TLSv1.3"),
    "smtp_tls_mandatory_protocols": (">=TLSv1.2", ">=TLSv1.3"),
    "smtp_tls_security_level": ("may", "encrypt"),
    "smtp_tls_session_cache_database": ("btree:/one", "btree:/two"),
    "smtp_tls_enforce_peername": ("no", "yes"),
}
_FEEDBACK = "destination_concurrency_{}_feedback"
VALUES |= {f"smtp_{_FEEDBACK.format(sign)}": ("1/2", "1/3") for sign in ("positive", "negative")}

# What must hold for a parameter to matter; both protocols get it.
LOGGED_IN = {"_sasl_auth_enable": "yes", "_sasl_password_maps": "static:a:b"}
NEEDS: Mapping[str, Mapping[str, str]] = {
    "smtp_sasl_auth_cache_time": {"_sasl_auth_cache_name": "on"},
    "smtp_sasl_path": {"_sasl_type": "postrio"},
    "smtp_tls_wrappermode": {"_tls_security_level": "encrypt"},
    "smtp_use_tls": {"_tls_security_level": ""},
    "smtp_enforce_tls": {"_tls_security_level": ""},
    "smtp_tls_enforce_peername": {"_tls_security_level": "", "_enforce_tls": "yes"},
    "smtp_tls_key_file": {"_tls_cert_file": "/certificate"},
    "smtp_tls_eckey_file": {"_tls_eccert_file": "/certificate"},
    "smtp_sasl_type": {"_sasl_path": "/bin/true"},
}

# Read by no component of LMTP, with the reason.
SMTP_ONLY = {"smtp_sender_dependent_authentication": "a mailbox server has one name for us"}
# Accepted, and read by no component.
UNREAD = {
    name for name, row in PARAMETERS.items() if "Without effect" in row.summary or row.no_effect
} | {"smtp_cname_overrides_servername"}


def values_for(row: Parameter) -> tuple[str, str]:
    """Two legal values that mean different things."""
    if row.name in VALUES:
        return VALUES[row.name]
    match row.kind:
        case Kind.BOOLEAN:
            return "no", "yes"
        case Kind.INTEGER:
            return "3", "2"
        case Kind.TIME:
            return "1001s", "1002s"
        case Kind.CHOICE | Kind.WORDS if len(row.choices) > 1:
            return row.choices[0], row.choices[1]
        case Kind.TABLES:
            return "static:one", "static:two"
        case _:
            return "one.example", "two.example"


def facts(value: object) -> object:
    """What a settings object says, comparable: tables by their names, the rest by its fields."""
    match value:
        case Maps():
            return [table.spec for table in value.tables]
        case bytes():
            return "octets"  # a salt, made anew each time
        case None | str() | int() | float() | Enum():
            return value
        case Mapping():
            return [(str(key), facts(each)) for key, each in value.items()]
        case list() | tuple():
            return [facts(each) for each in value]
        case set() | frozenset():
            return sorted(map(str, value))
    if dataclasses.is_dataclass(value):
        return [(each.name, facts(getattr(value, each.name))) for each in dataclasses.fields(value)]
    if isinstance(value, StringList):
        return [facts(vars(item)) for item in value._items]
    if isinstance(value, FunctionType):  # what it was made with
        return [facts(cell.cell_contents) for cell in value.__closure__ or ()]
    held = getattr(value, "__dict__", {})
    return [type(value).__name__, *((name, facts(each)) for name, each in held.items())]


def used(settings: Mapping[str, str], protocol: Protocol) -> object:
    """All that a protocol's components make of a configuration."""
    config = Config.from_mapping(settings)
    network = NetworkSettings.from_config(config, protocol, local=list, look_up=lambda _: [])
    delivery = DeliverySettings.from_config(config, protocol)
    return facts(
        [
            network,
            dataclasses.replace(delivery, fingerprint=""),  # it is of all names of a protocol
            ReusePolicy.from_config(config, protocol),
            TlsSettings.from_config(config, protocol),
            SaslClient.from_config(config, protocol),
            TransportSettings.from_config(config, protocol.value),
        ]
    )


def settings(name: str, smtp: str, lmtp: str) -> dict[str, str]:
    row_needs = {**LOGGED_IN, **NEEDS.get(name, {})}
    both = {
        f"{prefix}{rest}": value for prefix in ("smtp", "lmtp") for rest, value in row_needs.items()
    }
    return {**both, name: smtp, PAIRS[name]: lmtp}


@pytest.mark.parametrize("name", PAIRS)
def test_s172_each_protocol_uses_its_own_of_a_pair(name: str) -> None:
    one, two = values_for(PARAMETERS[name])
    different = settings(name, one, two)
    as_smtp, as_lmtp = settings(name, one, one), settings(name, two, two)
    smtp, lmtp = used(different, Protocol.SMTP), used(different, Protocol.LMTP)
    assert smtp == used(as_smtp, Protocol.SMTP), f"SMTP uses {PAIRS[name]}"
    assert lmtp == used(as_lmtp, Protocol.LMTP), f"LMTP uses {name}"
    read = name not in without_effect_yet() and name not in UNREAD
    assert (smtp != used(as_lmtp, Protocol.SMTP)) is read
    assert (lmtp != used(as_smtp, Protocol.LMTP)) is (read and name not in SMTP_ONLY)
