"""Rows of the parameter table: TLS with servers. What a server must prove, with which versions and
ciphers, and the parameters that came before; from them to a policy it goes in `worker/tls/`.
"""

from worker.config.parameter import Parameter, Twin
from worker.config.rows import boolean, choice, integer, tables, text, time, words

LEVELS = ("none", "may", "encrypt", "fingerprint", "verify", "secure", "dane", "dane-only")
_MEDIUM = "it is the same as medium since Postfix 3.8, and this list has no effect"

TLS_LEVEL: tuple[Parameter, ...] = (
    choice(
        "smtp_tls_security_level",
        "may",
        "What TLS is needed for mail to go out: none, may (if the server offers it), encrypt, and,"
        " with proof of who the server is, fingerprint, verify, secure. Nothing: what"
        " smtp_enforce_tls and smtp_use_tls say. dane and dane-only are not supported yet and stop"
        " the start.",
        choices=("", *LEVELS),
        expected="nothing, none, may, encrypt, fingerprint, verify or secure; dane and dane-only"
        " are not supported yet",
        mirror=Twin(name="lmtp_tls_security_level", default=""),
    ),
    tables(
        "smtp_tls_policy_maps",
        "",
        "The level for one destination, with attributes: protocols, ciphers, exclude, match,"
        " servername, tafile, connection_reuse, wrappermode. The key is the nexthop as written,"
        " brackets and port included; for a bare domain also .parent.domain. An entry with a"
        " mistake defers the mail.",
    ),
    boolean(
        "smtp_tls_wrappermode",
        "no",
        "TLS from the first octet, without STARTTLS, as at port 465; needs the level encrypt or a"
        " stronger one.",
        source="Postfix 3.0",
    ),
    text(
        "smtp_tls_servername",
        "",
        "Name that tells the server which certificate we expect (SNI): hostname, nexthop, or a name"
        " itself. Nothing: the nexthop at level secure, the host at level verify, else none.",
        source="Postfix 3.4",
    ),
    boolean(
        "smtp_tls_note_starttls_offer",
        "no",
        "Log that a server offers STARTTLS where the level is none.",
    ),
    integer(
        "smtp_tls_loglevel",
        "0",
        "What is logged of TLS: 0 nothing, 1 a line for each handshake, 2 its steps, too; and into"
        " postrio_tls_trace_file 3 the messages of each handshake, 4 all records after it.",
    ),
    text(
        "postrio_tls_trace_file",
        "$data_directory/tls_trace",
        "The file, for its owner alone, that tells kinds and sizes of TLS messages, but no"
        " contents, when smtp_tls_loglevel is 3 or more; up to 16 MB. Nothing: there is none.",
        source="postrio",
    ),
    boolean(
        "smtp_log_tls_feature_status",
        "yes",
        "Say in the line of a delivery what TLS there was, as tls=verify.",
        source="Postfix 3.11",
    ),
    boolean(
        "smtp_tls_block_early_mail_reply",
        "no",
        "Without effect: a reply that comes before its command always ends the session.",
        source="Postfix 2.7",
    ),
)

TLS_PROOF: tuple[Parameter, ...] = (
    text("smtp_tls_CAfile", "", "File of the authorities that may vouch for servers, in PEM."),
    text(
        "smtp_tls_CApath",
        "",
        "Directory of such authorities, under hashed names (openssl rehash); also read later, so it"
        " must be there inside a jail.",
    ),
    boolean(
        "tls_append_default_CA",
        "no",
        "Let the system's authorities vouch, too.",
        source="Postfix 2.4",
    ),
    words(
        "smtp_tls_trust_anchor_file",
        "",
        "Files of certificates or public keys, in PEM, that alone are trusted at the levels verify"
        " and secure, whether or not they are roots.",
        source="Postfix 2.11",
    ),
    words(
        "smtp_tls_verify_cert_match",
        "hostname",
        "Names one of which the certificate must hold at level verify: hostname, nexthop,"
        " dot-nexthop (anything below it), a name itself, or .name (anything below it).",
    ),
    words(
        "smtp_tls_secure_cert_match",
        "nexthop, dot-nexthop",
        "The same at level secure. hostname has no place here: it comes from DNS.",
        mirror=Twin(name="lmtp_tls_secure_cert_match", default="nexthop"),
    ),
    words(
        "smtp_tls_fingerprint_cert_match",
        "",
        "Digests of certificates or public keys that are accepted at level fingerprint, in"
        " hexadecimal, with or without colons.",
    ),
    text(
        "smtp_tls_fingerprint_digest",
        "sha256",
        "How digests are made; md5 and sha1 can be forged and lead to a warning.",
    ),
    integer(
        "smtp_tls_scert_verifydepth",
        "9",
        "How many authorities may stand between a server's certificate and one that is trusted.",
    ),
    boolean(
        "tls_wildcard_matches_multiple_labels",
        "yes",
        "Let the * of *.example.com in a certificate stand for more than one label.",
        source="Postfix 2.11",
    ),
    words(
        "smtp_tls_chain_files",
        "",
        "Our own certificates, shown to servers that ask: PEM files with a key, behind it its"
        " certificate, and behind that the chain; each may be a file of its own (privkey.pem,"
        " fullchain.pem). Wins over the four parameters below.",
        source="Postfix 3.4",
    ),
    text("smtp_tls_cert_file", "", "Our own certificate (RSA), and behind it the chain, in PEM."),
    text("smtp_tls_key_file", "$smtp_tls_cert_file", "Its key, in PEM, not encrypted."),
    text(
        "smtp_tls_eccert_file",
        "",
        "Our own certificate (elliptic curve), and behind it the chain, in PEM.",
        source="Postfix 2.6",
    ),
    text(
        "smtp_tls_eckey_file",
        "$smtp_tls_eccert_file",
        "Its key, in PEM, not encrypted.",
        source="Postfix 2.6",
    ),
    boolean(
        "smtp_tls_enable_rpk",
        "no",
        "Ask servers for a bare public key (RFC 7250). Not supported: yes is a warning.",
        source="Postfix 3.9",
    ),
)

TLS_CIPHERS: tuple[Parameter, ...] = (
    words(
        "smtp_tls_protocols",
        ">=TLSv1",
        "Protocol versions at level may: bounds (>=TLSv1.2, <=TLSv1.3), names (TLSv1.2) or"
        " exclusions (!TLSv1).",
        source="Postfix 2.6",
    ),
    words(
        "smtp_tls_mandatory_protocols",
        ">=TLSv1.2",
        "The same at level encrypt and above.",
    ),
    text(
        "smtp_tls_ciphers",
        "medium",
        "Weakest cipher grade at level may: medium, high; low and export mean medium.",
        source="Postfix 2.6",
    ),
    text(
        "smtp_tls_mandatory_ciphers",
        "medium",
        "Weakest cipher grade at level encrypt and above: medium, high; low and export mean medium."
        " null: see postrio_tls_allow_null.",
    ),
    words(
        "smtp_tls_exclude_ciphers",
        "",
        "Ciphers, or groups of them in OpenSSL's words, that are used at no level.",
    ),
    words(
        "smtp_tls_mandatory_exclude_ciphers",
        "",
        "More of them, for level encrypt and above.",
    ),
    text(
        "tls_high_cipherlist",
        "aNULL:-aNULL:HIGH:!SEED:!IDEA:!3DES:!RC2:!RC4:!RC5:!kDH:!kECDH:!aDSS:!MD5:@STRENGTH",
        "The grade high, as OpenSSL's list for TLS 1.2 and below. Without @SECLEVEL in it,"
        " OpenSSL's security level is 0 where nothing is proved or TLS 1.1 is allowed, else 1.",
    ),
    text(
        "tls_medium_cipherlist",
        "aNULL:-aNULL:HIGH:MEDIUM:!SEED:!IDEA:!3DES:!RC2:!RC4:!RC5:!kDH:!kECDH:!aDSS:!MD5:@STRENGTH",
        "The grade medium.",
    ),
    text("tls_low_cipherlist", "", f"The grade low: {_MEDIUM}."),
    text("tls_export_cipherlist", "", f"The grade export: {_MEDIUM}."),
    text(
        "tls_null_cipherlist",
        "eNULL:!aNULL",
        "The grade null: suites that prove and do not encrypt.",
    ),
    boolean(
        "postrio_tls_allow_null",
        "no",
        "Allow the cipher grade null, with which mail is not encrypted; it works at the levels"
        " fingerprint, verify and secure, with TLS 1.2 and below.",
        source="postrio",
    ),
)

TLS_SESSIONS: tuple[Parameter, ...] = (
    boolean(
        "smtp_tls_connection_reuse",
        "yes",
        "Let other processes of this host use an idle TLS connection, through the connection"
        " cache. The process that made it keeps the keys.",
        source="Postfix 3.4",
    ),
    text(
        "smtp_tls_session_cache_database",
        "",
        "Where the processes of this host share TLS sessions that can be resumed: type:/path/name"
        " is the file name.sqlite, whatever the type. Nothing: each process remembers its own.",
    ),
    text(
        "data_directory",
        "$queue_directory",
        "Where caches are, for values that mention it.",
    ),
    time(
        "smtp_tls_session_cache_timeout",
        "3600s",
        "How long a TLS session may be resumed, from 2 minutes to 100 days; 0: never.",
        minimum=0,
    ),
    integer(
        "tls_daemon_random_bytes",
        "32",
        "Without effect: the library seeds itself.",
    ),
)

TLS_FORMER: tuple[Parameter, ...] = (
    boolean(
        "smtp_use_tls",
        "no",
        "TLS if the server offers it, where smtp_tls_security_level is not set or set to nothing.",
        deprecated="use smtp_tls_security_level = may",
    ),
    boolean(
        "smtp_enforce_tls",
        "no",
        "TLS always, where smtp_tls_security_level is not set or set to nothing.",
        deprecated="use smtp_tls_security_level = encrypt or verify",
    ),
    boolean(
        "smtp_tls_enforce_peername",
        "yes",
        "With smtp_enforce_tls: yes means the level verify, no the level encrypt.",
        deprecated="use smtp_tls_security_level = encrypt or verify",
    ),
    tables(
        "smtp_tls_per_site",
        "",
        "Levels by nexthop and by server host: NONE, MAY, MUST_NOPEERMATCH, MUST. Ignored where"
        " smtp_tls_policy_maps is set.",
        deprecated="use smtp_tls_policy_maps, where NONE, MAY, MUST_NOPEERMATCH and MUST are"
        ' written none, may, encrypt and verify: "example.com encrypt", by nexthop alone',
    ),
    text(
        "smtp_tls_cipherlist",
        "",
        "Without effect since Postfix 2.3.",
        mirror=None,
        deprecated="use smtp_tls_ciphers and smtp_tls_exclude_ciphers",
    ),
    text(
        "smtp_tls_dcert_file",
        "",
        "Without effect: DSA certificates are not used in TLS any more.",
        deprecated="use smtp_tls_chain_files with an RSA or elliptic curve certificate",
    ),
    text(
        "smtp_tls_dkey_file",
        "$smtp_tls_dcert_file",
        "Without effect, as smtp_tls_dcert_file.",
        deprecated="use smtp_tls_chain_files with an RSA or elliptic curve certificate",
    ),
)

TLS: tuple[Parameter, ...] = (
    *TLS_LEVEL,
    *TLS_PROOF,
    *TLS_CIPHERS,
    *TLS_SESSIONS,
    *TLS_FORMER,
)
