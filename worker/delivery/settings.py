"""What the configuration says about delivering: parsed once, the same for SMTP and LMTP."""

import hashlib
from dataclasses import dataclass
from typing import Final, Self

from protocol.request import Protocol
from worker.config.config import Config
from worker.config.parameters import PARAMETERS
from worker.config.tables import Maps
from worker.delivery.content_settings import AS_IT_IS, ContentSettings
from worker.delivery.pix import AS_USUAL, PixSettings
from worker.delivery.status_filter import StatusFilter

# One object for all: tables are equal only if they are the same, and settings are compared.
NO_TABLES: Final = Maps()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits of the phases, in seconds (S045 to S055). 0 never means "no limit" here."""

    helo: float = 300.0  # smtp_helo_timeout, lmtp_lhlo_timeout: greeting and EHLO
    starttls: float = 300.0  # smtp_starttls_timeout: the reply to STARTTLS, and the handshake
    xforward: float = 300.0  # smtp_xforward_timeout
    mail: float = 300.0  # smtp_mail_timeout
    rcpt: float = 300.0  # smtp_rcpt_timeout
    data_init: float = 120.0  # smtp_data_init_timeout
    data_xfer: float = 180.0  # smtp_data_xfer_timeout
    data_done: float = 600.0  # smtp_data_done_timeout
    rset: float = 20.0  # smtp_rset_timeout
    quit: float = 300.0  # smtp_quit_timeout
    whole_request: bool = False  # smtp_per_request_deadline: limits bound a command and its reply
    min_data_rate: int = 500  # smtp_min_data_rate, octets per second; only with the line above


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """One protocol's settings. Field comments name the parameter; defaults are its defaults."""

    protocol: Protocol = Protocol.SMTP
    hostname: str = "localhost"  # myhostname
    helo_name: str = "localhost"  # smtp_helo_name, lmtp_lhlo_name
    limits: Limits = Limits()
    always_send_ehlo: bool = True  # smtp_always_send_ehlo
    never_send_ehlo: bool = False  # smtp_never_send_ehlo
    skip_5xx_greeting: bool = True  # smtp_skip_5xx_greeting
    skip_quit_response: bool = True  # smtp_skip_quit_response
    quote_envelope: bool = True  # smtp_quote_rfc821_envelope
    defer_rcpt_552: bool = False  # postrio_defer_rcpt_552
    probe_data: bool = False  # smtp_address_verify_target is data: probes ask DATA, too
    mx_session_limit: int = 2  # smtp_mx_session_limit; 0: no limit
    discard_keywords: tuple[str, ...] = ()  # smtp_discard_ehlo_keywords, lower case
    discard_maps: Maps = NO_TABLES  # smtp_discard_ehlo_keyword_address_maps, by server address
    send_xforward: bool = False  # smtp_send_xforward_command
    by_sender: bool = False  # smtp_sender_dependent_authentication, if there is any
    log_tls: bool = True  # smtp_log_tls_feature_status: `tls=` in the log
    content: ContentSettings = AS_IT_IS
    pix: PixSettings = AS_USUAL
    status_filter: StatusFilter | None = None  # smtp_delivery_status_filter; None: empty
    reuse_time_limit: float = 300.0  # smtp_connection_reuse_time_limit, seconds
    reuse_count_limit: int = 0  # smtp_connection_reuse_count_limit; 0: no limit
    fingerprint: str = ""  # of all parameters that shape a session: equal in processes that agree

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self:
        """Read the smtp_ or lmtp_ parameters; ConfigError was raised at load if one is bad."""

        def name(parameter: str) -> str:
            return config.mirror(parameter, protocol)

        def seconds(parameter: str) -> float:
            return config.seconds(name(parameter))

        limits = Limits(
            helo=seconds("smtp_helo_timeout"),
            starttls=seconds("smtp_starttls_timeout"),
            xforward=seconds("smtp_xforward_timeout"),
            mail=seconds("smtp_mail_timeout"),
            rcpt=seconds("smtp_rcpt_timeout"),
            data_init=seconds("smtp_data_init_timeout"),
            data_xfer=seconds("smtp_data_xfer_timeout"),
            data_done=seconds("smtp_data_done_timeout"),
            rset=seconds("smtp_rset_timeout"),
            quit=seconds("smtp_quit_timeout"),
            whole_request=config.boolean(name("smtp_per_request_deadline")),
            min_data_rate=config.integer(name("smtp_min_data_rate")),
        )
        return cls(
            protocol=protocol,
            hostname=config.text("myhostname"),
            helo_name=config.text(name("smtp_helo_name")),
            limits=limits,
            always_send_ehlo=config.boolean(name("smtp_always_send_ehlo")),
            never_send_ehlo=config.boolean(name("smtp_never_send_ehlo")),
            skip_5xx_greeting=config.boolean(name("smtp_skip_5xx_greeting")),
            skip_quit_response=config.boolean(name("smtp_skip_quit_response")),
            quote_envelope=config.boolean(name("smtp_quote_rfc821_envelope")),
            defer_rcpt_552=config.boolean("postrio_defer_rcpt_552"),
            probe_data=config.choice(name("smtp_address_verify_target")) == "data",
            mx_session_limit=config.integer(name("smtp_mx_session_limit")),
            discard_keywords=tuple(
                word.lower() for word in config.words(name("smtp_discard_ehlo_keywords"))
            ),
            discard_maps=config.maps(name("smtp_discard_ehlo_keyword_address_maps")) or NO_TABLES,
            send_xforward=config.boolean(name("smtp_send_xforward_command")),
            by_sender=protocol is Protocol.SMTP
            and config.boolean(name("smtp_sasl_auth_enable"))
            and config.boolean("smtp_sender_dependent_authentication"),
            log_tls=config.boolean(name("smtp_log_tls_feature_status")),
            content=ContentSettings.from_config(config, protocol),
            pix=PixSettings.from_config(config, protocol),
            status_filter=StatusFilter.from_config(config, protocol),
            reuse_time_limit=seconds("smtp_connection_reuse_time_limit"),
            reuse_count_limit=config.integer(name("smtp_connection_reuse_count_limit")),
            fingerprint=_fingerprint(config, protocol),
        )


# Besides those of the client itself: who we are, and from where we connect.
_SHAPING: Final = ("myhostname", "inet_interfaces", "inet_protocols", "send_cyrus_sasl_authzid")


def _fingerprint(config: Config, protocol: Protocol) -> str:
    """A digest of every parameter that may decide who we talk to and as whom.

    All of the client's, whether or not they do: a parameter that was forgotten here would let a
    session serve somebody it must not; one too many costs a reconnect after a reload.
    """
    digest = hashlib.sha256()
    for parameter in PARAMETERS:
        if parameter in _SHAPING or parameter.startswith((f"{protocol.value}_", "tls_")):
            digest.update(f"{parameter}={config.text(parameter)}\0".encode("utf-8", "replace"))
    return digest.hexdigest()[:32]
