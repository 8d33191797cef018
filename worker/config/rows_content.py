"""Rows of the parameter table: what is done to a message's content on its way out."""

from worker.config.parameter import Parameter
from worker.config.rows import boolean, integer, matches, tables

CONTENT: tuple[Parameter, ...] = (
    integer(
        "smtp_line_length_limit",
        "998",
        "Octets of the longest line sent; longer lines are broken. 0: never.",
    ),
    boolean(
        "disable_mime_output_conversion",
        "no",
        "Send 8-bit content as it is to servers without 8BITMIME.",
    ),
    integer(
        "mime_nesting_limit",
        "100",
        "How deeply multiparts may be nested; what is deeper is text to the checks, and is bounced"
        " where it would have to be converted.",
        minimum=1,
    ),
    integer(
        "mime_boundary_length_limit",
        "2048",
        "How many octets of a MIME boundary are compared.",
        minimum=1,
    ),
    tables(
        "smtp_generic_maps",
        "",
        "By address, the one that takes its place in the envelope and in the message's header.",
    ),
    matches(
        "mydestination",
        "$myhostname, localhost.$mydomain, localhost",
        "Domains whose users are looked up in smtp_generic_maps without the domain, too.",
    ),
    tables(
        "smtp_header_checks",
        "",
        "By header field, what is done to it: REPLACE, PREPEND, IGNORE, STRIP, WARN, INFO, DUNNO.",
    ),
    tables(
        "smtp_mime_header_checks",
        "",
        "As smtp_header_checks, for fields about MIME and those of body parts.",
    ),
    tables(
        "smtp_nested_header_checks",
        "",
        "As smtp_header_checks, for fields of messages in the message.",
    ),
    tables("smtp_body_checks", "", "As smtp_header_checks, for each line of the body."),
)
