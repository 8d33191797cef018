"""Rows of the parameter table: the SMTP and LMTP client, from finding a server to QUIT."""

import re

from worker.config.parameter import Parameter, Twin
from worker.config.rows import boolean, choice, integer, tables, text, time, words

SINCE_REFUSED = "it was always on since Postfix 2.1; remove it"
# Anything else would be no EHLO command, and every delivery would fail for that.
_ONE_WORD = re.compile(r"[^\x00-\x20\x7f-\xa0]{1,255}")

DESTINATIONS: tuple[Parameter, ...] = (
    text(
        "smtp_tcp_port",
        "smtp",
        "Port or service name dialled when the destination names none.",
        source="Postfix 3.2",
        mirror=Twin(name="lmtp_tcp_port"),  # a row of its own: it is found in another way
    ),
    text(
        "lmtp_tcp_port",
        "24",
        "Port or service name for LMTP over TCP where the services file has no entry lmtp.",
    ),
    words(
        "known_tcp_ports",
        "lmtp=24, smtp=25, smtps=submissions=465, submission=587",
        "Service names that are turned into ports without the services file: name=...=number.",
        source="Postfix 3.6",
    ),
    boolean(
        "ignore_mx_lookup_error",
        "no",
        "When an MX query gives no usable answer, go on with the addresses of the domain itself"
        " instead of trying again later.",
    ),
    boolean(
        "smtp_defer_if_no_mx_address_found",
        "no",
        "Try again later, instead of bouncing, when no MX host has an address.",
    ),
    words(
        "smtp_host_lookup",
        "dns",
        "How host names become addresses: dns, native (the system's resolver), or both;"
        " native is asked only for names that DNS does not know.",
        choices=("dns", "native"),
    ),
    choice(
        "smtp_dns_support_level",
        "",
        "What DNS is used for: disabled (native lookups only), enabled, dnssec. Nothing: enabled"
        " unless disable_dns_lookups says otherwise.",
        choices=("", "disabled", "enabled", "dnssec"),
        source="Postfix 2.11",
    ),
    boolean(
        "disable_dns_lookups",
        "no",
        "Ask no MX and no DNS address records: every destination is looked up natively.",
        deprecated="use smtp_dns_support_level = disabled",
    ),
    boolean(
        "smtp_randomize_addresses",
        "yes",
        "Shuffle the addresses of equal MX preference, once for each delivery.",
    ),
    integer(
        "smtp_mx_address_limit",
        "5",
        "How many addresses of a destination are tried at most; 0: all.",
    ),
    integer(
        "smtp_mx_session_limit",
        "2",
        "How many sessions that got past greeting and EHLO one delivery may use; 0: no limit.",
    ),
    choice(
        "smtp_address_preference",
        "any",
        "Which address family goes first inside one MX preference: any, ipv4, ipv6.",
        choices=("any", "ipv4", "ipv6"),
        source="Postfix 2.8",
    ),
    boolean(
        "smtp_balance_inet_protocols",
        "yes",
        "Keep both address families among the addresses that the address limit leaves.",
        source="Postfix 3.3",
    ),
    words(
        "smtp_fallback_relay",
        "$fallback_relay",
        "Destinations, tried in order, when the real one is not found or fails for the moment.",
        mirror=Twin(name="lmtp_fallback_relay", default=""),
    ),
    words(
        "fallback_relay",
        "",
        "Former name of smtp_fallback_relay.",
        deprecated="use smtp_fallback_relay",
    ),
    text(
        "best_mx_transport",
        "",
        "Transport that takes mail for domains whose best MX host is this machine; nothing: such"
        " mail is bounced as a loop.",
    ),
    words(
        "inet_protocols",
        "all",
        "Address families that are resolved and dialled: ipv4, ipv6, all.",
        choices=("ipv4", "ipv6", "all"),
    ),
    words(
        "inet_interfaces",
        "all",
        "Own addresses, for loop detection: addresses, host names, all, loopback-only. A single"
        " address of a family is also the source address for that family.",
    ),
    words(
        "proxy_interfaces",
        "",
        "Further own addresses, those of a NAT or proxy in front of us; loop detection only.",
    ),
    text("smtp_bind_address", "", "Numeric IPv4 source address of connections."),
    text("smtp_bind_address6", "", "Numeric IPv6 source address of connections."),
    boolean(
        "smtp_bind_address_enforce",
        "no",
        "Try again later, instead of warning, when the source address cannot be used.",
        source="Postfix 3.7",
    ),
    boolean(
        "smtp_cname_overrides_servername",
        "no",
        "Name a server by the end of its CNAME chain. Refused for security: only no has effect.",
        deprecated="names from DNS aliases cannot be trusted; yes is ignored, remove it",
    ),
)

LIMITS: tuple[Parameter, ...] = (
    time(
        "smtp_connect_timeout",
        "30s",
        "Limit of one TCP connect; 0: what the system allows.",
        minimum=0,
        mirror=Twin(name="lmtp_connect_timeout", default="0s"),
    ),
    time(
        "smtp_helo_timeout",
        "300s",
        "Limit for the server's greeting, and for EHLO or HELO with its reply.",
        mirror=Twin(name="lmtp_lhlo_timeout"),
    ),
    time(
        "smtp_starttls_timeout",
        "300s",
        "Limit of each read and write in a TLS handshake or shutdown.",
    ),
    time("smtp_xforward_timeout", "300s", "Limit for an XFORWARD command with its reply."),
    time("smtp_mail_timeout", "300s", "Limit for MAIL FROM with its reply."),
    time("smtp_rcpt_timeout", "300s", "Limit for each RCPT TO with its reply."),
    time("smtp_data_init_timeout", "120s", "Limit for DATA with its reply."),
    time("smtp_data_xfer_timeout", "180s", "Limit of one blocked write of message content."),
    time(
        "smtp_data_done_timeout",
        "600s",
        "Limit for the final dot with its reply; after it the message may arrive twice.",
    ),
    time("smtp_rset_timeout", "20s", "Limit for RSET with its reply."),
    time("smtp_quit_timeout", "300s", "Limit for QUIT with its reply, where that is awaited."),
    boolean(
        "smtp_per_request_deadline",
        "$smtp_per_record_deadline",
        "Let each limit hold for a whole command or reply, not for each read and write.",
        source="Postfix 3.7",
    ),
    boolean(
        "smtp_per_record_deadline",
        "no",
        "Former name of smtp_per_request_deadline.",
        source="Postfix 2.9",
        deprecated="use smtp_per_request_deadline",
    ),
    integer(
        "smtp_min_data_rate",
        "500",
        "Octets per second of content that extend the limit under smtp_per_request_deadline.",
        source="Postfix 3.7",
        minimum=1,
    ),
)

DIALOGUE: tuple[Parameter, ...] = (
    boolean(
        "smtp_skip_5xx_greeting",
        "yes",
        "Take a 5xx greeting for an unwilling host and try the next one; no: bounce.",
    ),
    boolean(
        "smtp_skip_4xx_greeting",
        "yes",
        "Without effect: a 4xx greeting always leads to the next host.",
        mirror=None,
        deprecated=SINCE_REFUSED,
    ),
    boolean(
        "smtp_skip_quit_response",
        "yes",
        "Close right after QUIT, without waiting for its reply.",
        mirror=Twin(name="lmtp_skip_quit_response", default="no"),
    ),
    boolean(
        "smtp_quote_rfc821_envelope",
        "yes",
        "Quote local parts in MAIL FROM and RCPT TO as RFC 5321 demands.",
    ),
    boolean(
        "postrio_defer_rcpt_552",
        "no",
        "Defer a recipient who is refused with 552 after others of the message were accepted, for"
        " servers that say so to too many recipients (RFC 821); no: a 552 is final.",
        source="postrio",
    ),
    boolean(
        "smtp_always_send_ehlo",
        "yes",
        "Begin with EHLO whatever the greeting says; no: only when it says ESMTP.",
        mirror=None,
    ),
    boolean(
        "smtp_never_send_ehlo",
        "no",
        "Begin with HELO, and so use no extension at all.",
        mirror=None,
    ),
    text(
        "smtp_helo_name",
        "$myhostname",
        "Host name or address literal sent with EHLO and HELO.",
        pattern=_ONE_WORD,
        expected="a host name or address literal, in one word",
        mirror=Twin(name="lmtp_lhlo_name"),
    ),
    words(
        "smtp_discard_ehlo_keywords",
        "",
        "EHLO keywords to overlook; silent-discard among them keeps that out of the log.",
        mirror=Twin(name="lmtp_discard_lhlo_keywords"),
    ),
    tables(
        "smtp_discard_ehlo_keyword_address_maps",
        "",
        "By server address, the list that replaces smtp_discard_ehlo_keywords.",
        mirror=Twin(name="lmtp_discard_lhlo_keyword_address_maps"),
    ),
    words(
        "smtp_pix_workarounds",
        "disable_esmtp,delay_dotcrlf",
        "What to do about servers with a masked greeting: disable_esmtp, delay_dotcrlf.",
        choices=("disable_esmtp", "delay_dotcrlf"),
    ),
    time(
        "smtp_pix_workaround_threshold_time",
        "500s",
        "Age of a message in the queue from which delay_dotcrlf is done.",
        minimum=0,
    ),
    time(
        "smtp_pix_workaround_delay_time",
        "10s",
        "The pause that delay_dotcrlf makes before the final dot.",
    ),
    tables(
        "smtp_pix_workaround_maps",
        "",
        "By server address, the list that replaces smtp_pix_workarounds.",
    ),
    boolean(
        "smtp_send_xforward_command",
        "no",
        "Tell a server that offers XFORWARD which client the message came from.",
    ),
    choice(
        "smtp_address_verify_target",
        "rcpt",
        "What a probe of addresses ends behind: rcpt, or data, for servers that refuse recipients"
        " in their reply to DATA. Without a refusal there the connection is closed, and no message"
        " is sent.",
        choices=("rcpt", "data"),
        source="Postfix 3.0",
    ),
    boolean(
        "lmtp_assume_final",
        "no",
        "Report delivery, not relaying, for LMTP servers without DSN support.",
    ),
    tables(
        "default_delivery_status_filter",
        "",
        "By status and text of an outcome, those that take their place; the default for the"
        " filters of SMTP and LMTP.",
        source="Postfix 3.0",
    ),
    tables(
        "smtp_delivery_status_filter",
        "$default_delivery_status_filter",
        "By status and text of an outcome, those that take their place, as in 5.1.1 no such user."
        " Success stays success and failure stays failure, but a 4 may become a 5, and a 5 a 4. A"
        " table in trouble bounces nobody.",
        source="Postfix 3.0",
    ),
)

CLIENT: tuple[Parameter, ...] = (*DESTINATIONS, *LIMITS, *DIALOGUE)
