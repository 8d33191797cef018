"""Rows of the parameter table: logging in at a server (AUTH)."""

import re

from worker.config.parameter import Parameter
from worker.config.rows import boolean, choice, matches, tables, text, time, words

_OPTIONS = (
    "noplaintext",
    "noactive",
    "nodictionary",
    "noanonymous",
    "mutual_auth",
    "forward_secrecy",
)

SASL: tuple[Parameter, ...] = (
    boolean(
        "smtp_sasl_auth_enable",
        "no",
        "Log in at servers that offer AUTH and are in smtp_sasl_password_maps, which must be set.",
    ),
    tables(
        "smtp_sasl_password_maps",
        "",
        "Texts user:password by sender address (with smtp_sender_dependent_authentication), by"
        " server name, or by nexthop as it is written; who has no entry is not logged in at.",
    ),
    text(
        "smtp_sasl_password_result_delimiter",
        ":",
        "The character between user and password in smtp_sasl_password_maps; the first one counts.",
        source="Postfix 3.9",
        pattern=re.compile(r"[^\s\0]"),
        expected="one character, no white space",
    ),
    boolean(
        "smtp_sender_dependent_authentication",
        "no",
        "Look for the sender's address in smtp_sasl_password_maps first; SMTP only.",
    ),
    words(
        "smtp_sasl_security_options",
        "noplaintext, noanonymous",
        "Mechanisms that must not be used without TLS: noplaintext (PLAIN, LOGIN, tokens), noactive"
        " (who takes the server's place learns something), nodictionary (who listens can try out"
        " passwords), noanonymous, forward_secrecy; mutual_auth leaves those where the server"
        " proves itself, too.",
        choices=_OPTIONS,
    ),
    words(
        "smtp_sasl_tls_security_options",
        "$smtp_sasl_security_options",
        "As smtp_sasl_security_options, for sessions with TLS.",
        choices=_OPTIONS,
    ),
    words(
        "smtp_sasl_tls_verified_security_options",
        "$smtp_sasl_tls_security_options",
        "As smtp_sasl_security_options, for sessions with TLS where the server has proved its name"
        " or fingerprint.",
        choices=_OPTIONS,
    ),
    matches(
        "smtp_sasl_mechanism_filter",
        "",
        "The mechanisms that may be used, of those that the server offers; nothing: all.",
    ),
    choice(
        "smtp_sasl_type",
        "cyrus",
        "Either word stands for the mechanisms of postrio; with postrio, smtp_sasl_path has a"
        " meaning.",
        choices=("cyrus", "postrio"),
    ),
    text(
        "smtp_sasl_path",
        "",
        "With smtp_sasl_type = postrio, the command that prints a token for OAUTHBEARER and"
        " XOAUTH2, called with user and server name, for entries without a password. Otherwise it"
        " is ignored.",
    ),
    text(
        "smtp_sasl_auth_cache_name",
        "",
        "Remember logins that the server refused (535), and do not try them again while user and"
        " password stay the same: type:/path/name means that all processes of this host do so, in"
        " the file name.sqlite, whatever the type; with another text each does for itself.",
    ),
    time(
        "smtp_sasl_auth_cache_time",
        "90d",
        "How long a refused login is remembered.",
        unit="d",
    ),
    boolean(
        "smtp_sasl_auth_soft_bounce",
        "yes",
        "Try again later when a login is refused for good; no: bounce.",
    ),
    boolean(
        "send_cyrus_sasl_authzid",
        "no",
        "Send the user name as authorization identity, too.",
    ),
    boolean(
        "smtp_send_dummy_mail_auth",
        "no",
        "Send AUTH=<> with MAIL FROM once logged in.",
        source="Postfix 2.9",
    ),
)
