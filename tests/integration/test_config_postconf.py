"""Our reading of main.cf, lookup tables and lists beside postconf(1), postmap(1), postqueue(1).

Each test gives both the same files, in a directory of its own, and compares what they say.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest

from tests.integration.peers import find_program
from tests.unit.test_rows import rows
from worker.config.config import Config, ConfigError, Facts
from worker.config.listing import Form, Which, show
from worker.config.match_list import open_string_list
from worker.config.parameters import PARAMETERS, find
from worker.config.tables import TableConfigError, TableError, open_table
from worker.config.values import BadValueError, split_list

pytestmark = pytest.mark.peer("postfix")  # the package of postconf and postmap

SATELLITE = """\
# See /usr/share/postfix/main.cf.dist for a commented, more complete version
smtpd_banner = $myhostname ESMTP $mail_name (Debian/GNU)
biff = no

# appending .domain is the MUA's job.
append_dot_mydomain = no
readme_directory = no
compatibility_level = 3.6
smtpd_tls_cert_file=/etc/ssl/certs/ssl-cert-snakeoil.pem
smtp_tls_CApath=/etc/ssl/certs
smtp_tls_session_cache_database = btree:${data_directory}/smtp_scache
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
myhostname = host.example.com
alias_maps = hash:/etc/aliases
mydestination = $myhostname, localhost.$mydomain, , localhost
relayhost = [smtp.example.net]:587
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
mailbox_size_limit = 0
recipient_delimiter = +
inet_interfaces = loopback-only
inet_protocols = all
"""

OUTBOUND = """\
myhostname = out1.mail.example.org
mydomain = mail.example.org
myorigin = $mydomain
pool = 7
helo_suffix = ${pool?{-p$pool}:{}}
smtp_helo_name = ${myhostname}$helo_suffix
maximal_queue_lifetime = 3d
bounce_queue_lifetime =
    ${{$maximal_queue_lifetime} == {3d} ?
        {1d} :
        {5d}}
smtp_fallback_relay =
    [fallback1.example.org]:2525,

    # the far one
    [fallback2.example.org]
smtp_destination_concurrency_limit = 10
bulk_destination_rate_delay = 1s
bulk_destination_concurrency_limit = $smtp_destination_concurrency_limit
default_destination_concurrency_negative_feedback = 1/concurrency
smtp_mx_address_limit = 0
smtp_connect_timeout = 10
smtp_connect_timeout = 15
smtp_bind_address = 192.0.2.7
transport_maps = inline:{ {example.com = bulk:}, example.net=smtp:[relay] }
"""

ODD = """\
   lead = in
myhostname=h.example
mail_name=a   b\tc
empty =
error_notice_recipient = $empty
bounce_notice_recipient = ${{$myhostname} != {x} ? {y}}|$$x|$(myhostname)|${ myhostname }
delay_notice_recipient=${nope?a}:${nope:dflt}|${myhostname?{ t }}|${{3.6} <level {3.10}?{lv}}
2bounce_notice_recipient = ${{1}<{10}?{y}:{n}}${{a}=={a}}${{a}=={b}}
unused = value
"""

FILES = {"satellite": SATELLITE, "outbound": OUTBOUND, "odd": ODD}


def run(program: str, *arguments: str | Path) -> str:
    """What a program of Postfix prints; its warnings are left aside."""
    path = find_program(program)
    assert path is not None
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def write_old(path: Path, text: str) -> None:
    """A file that looks old: Postfix waits while a file may still be edited."""
    path.write_bytes(text.encode())  # line ends as they are
    os.utime(path, (1e9, 1e9))


def configured(directory: Path, main_cf: str = "") -> Path:
    """The directory, with this main.cf."""
    write_old(directory / "main.cf", main_cf)
    return directory


# As they are met in the wild, or as they hurt.
FILES |= {
    path.stem: path.read_bytes().decode()
    for path in sorted(Path(__file__).with_name("main_cf").glob("*.cf"))
}

# What is left out of the comparison: the names, and why they differ.
APART = {
    "smtpd_banner": "mentions mail_name, which is ours",
    "smtp_tls_session_cache_database": "mentions data_directory, which is in the queue here",
    "no-such_destination_rate_delay": "no master.cf says which transports there are",
}

# Transports make names legal for Postfix.
MASTER_CF = "".join(
    f"{name} unix - - n - - smtp\n"
    for name in ("smtp", "lmtp", "bulk", "big", "huge", "my", "smtp-amavis")
)


@pytest.fixture(params=FILES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    configured(tmp_path, FILES[request.param])
    (tmp_path / "master.cf").write_text(MASTER_CF)
    return tmp_path


def config_of(directory: Path, *overrides: str) -> Config:
    """Without tables: `postconf` opens none either, and those of the corpus do not exist."""
    facts = Facts(hostname="h.example")
    return Config.load(directory, overrides, environ={}, facts=facts, tables=False)


def ours(directory: Path, *, expanded: bool) -> list[str]:
    return list(show(config_of(directory), which=Which.CHANGED, expanded=expanded))


def theirs(directory: Path, *options: str) -> list[str]:
    lines = run("postconf", "-c", directory, "-n", *options).splitlines()
    return [line for line in lines if not line.startswith("config_directory = ")]


def compared(lines: list[str]) -> list[str]:
    return [line for line in lines if line.partition(" ")[0] not in APART]


def test_s164_changed_parameters_are_printed_alike(directory: Path) -> None:
    expected = compared(theirs(directory))
    assert compared(ours(directory, expanded=False)) == expected
    assert expected


def test_s164_values_expand_alike(directory: Path) -> None:
    assert compared(ours(directory, expanded=True)) == compared(theirs(directory, "-x"))


def test_s164_named_parameters_are_printed_alike_in_every_form(directory: Path) -> None:
    config = config_of(directory)
    names = [line.partition(" ")[0] for line in compared(ours(directory, expanded=False))]
    names = [name for name in names if find(name) is not None][::-1]
    # Others that are not set, and one twice; their defaults are those of Postfix.
    names += [name for name in ("smtp_sasl_type", "smtp_rcpt_timeout") if name not in names] * 2
    for option, which, form, expanded in (
        ("-h", Which.ALL, Form.VALUES, False),
        ("-hx", Which.ALL, Form.VALUES, True),
        ("-x", Which.ALL, Form.BOTH, True),
        ("-H", Which.ALL, Form.NAMES, False),
        ("-n", Which.CHANGED, Form.BOTH, False),
        ("-nx", Which.CHANGED, Form.BOTH, True),
    ):
        expected = run("postconf", "-c", directory, option, *names).splitlines()
        said = list(show(config, names, which=which, form=form, expanded=expanded))
        assert said == expected, option


def test_s164_settings_of_the_command_line_win_alike(directory: Path) -> None:
    given = ("myhostname=o.over.example", "mydomain = over.example", "one=uno", "relayhost =")
    options = [word for text in given for word in ("-o", text)]
    said = list(show(config_of(directory, *given), which=Which.CHANGED, expanded=True))
    assert compared(said) == compared(theirs(directory, "-x", *options))


def test_s164_the_environment_says_alike_where_the_file_is(tmp_path: Path) -> None:
    program = find_program("postconf")
    assert program is not None
    configured(tmp_path, FILES["empties"])
    names = ("myhostname", "relayhost", "smtp_helo_timeout")
    done = subprocess.run(
        [program, "-n", *names],
        capture_output=True,
        text=True,
        check=True,
        env={"MAIL_CONFIG": str(tmp_path)},
    )
    found = Config.load(
        environ={"MAIL_CONFIG": str(tmp_path)}, facts=Facts(hostname="h"), tables=False
    )
    assert list(show(found, names, which=Which.CHANGED)) == done.stdout.splitlines()


def test_what_is_left_out_of_the_comparison_does_differ(tmp_path: Path) -> None:
    different = set()
    for name, text in FILES.items():
        where = tmp_path / name
        where.mkdir()
        configured(where, text)
        (where / "master.cf").write_text(MASTER_CF)
        for line in set(ours(where, expanded=True)) ^ set(theirs(where, "-x")):
            different.add(line.partition(" ")[0])
    assert different == APART.keys()


# No "=", no name; loops; what a dollar sign may not be followed by; conditions.
BROKEN = (
    *("relayhost [a]", "= x", "relay host = x", "relayhost", "inet interfaces ="),
    *("a = $b\nb = $a\nmyorigin = $a", "myorigin = $myorigin", "myorigin = ${a:$myorigin}"),
    *("relayhost = $", "relayhost = ${", "relayhost = ${a", "relayhost = $a.$ b"),
    *("relayhost = $(a}", "relayhost = ${}", "relayhost = ${a-b}", "relayhost = ${{a}}"),
    *("relayhost = ${{a} == b ? {c}}", "relayhost = ${{a} ~ {b} ? {c}}"),
    *("relayhost = ${a?{b} c}", "relayhost = ${a?{b}:{c} d}", "relayhost = ${{a}=={a}?{b}:{c} d}"),
    *("relayhost = ${{3.x} <level {3.6} ? {a}}", "relayhost = ${{} <level {3} ? {a}}"),
    *("relayhost = ${{1.2.3.4} <level {3} ? {a}}", "smtp_body_checks = regexp:{{/x$/ IGNORE}}"),
)


def test_s164_what_postfix_cannot_read_is_refused(tmp_path: Path) -> None:
    program = find_program("postconf")
    assert program is not None
    running = []  # all at once: each takes a second to die
    for number, text in enumerate(BROKEN):
        where = tmp_path / str(number)
        where.mkdir()
        configured(where, f"{text}\n")
        running.append(
            subprocess.Popen(
                [program, "-c", where, "-nx"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        with pytest.raises(ConfigError):
            config_of(where)
    statuses = [process.wait() for process in running]
    assert dict(zip(BROKEN, statuses, strict=True)) == dict.fromkeys(BROKEN, 1)


# One is stricter than the other, on purpose: (text, whether Postfix reads it, why).
STRICTER = (
    ("process_id = 4", True, "what is computed cannot be set; Postfix warns"),
    ("myhostname = h.$mydomain", True, "mydomain is made from myhostname; Postfix has h. then"),
    ("smtp_helo_timeout = soon", True, "values are checked by whoever reads the file, not later"),
    ("smtpd_banner = $ hi", False, "what is for other programs is theirs to judge"),
)


@pytest.mark.parametrize(("text", "read_there", "why"), STRICTER, ids=[row[2] for row in STRICTER])
def test_where_one_is_stricter(tmp_path: Path, text: str, read_there: bool, why: str) -> None:
    program = find_program("postconf")
    assert program is not None
    configured(tmp_path, f"{text}\n")
    done = subprocess.run([program, "-c", tmp_path, "-n"], capture_output=True, check=False)
    assert (done.returncode == 0) is read_there, why
    if read_there:
        with pytest.raises(ConfigError):
            config_of(tmp_path)
    else:
        config_of(tmp_path)


# Texts that can be read, made of everything that there is; names refer to later ones only.
PIECES = (
    *("$N", "${N}", "$(N)", "${N?{x$N}}", "${N?y N}", "${N:{$N}}", "${N:z}", "${N?{a}:{b $N}}"),
    *("${{$N} == {$N} ? {same} : {other}}", "${{$N} < {$N} ? {less}}", "${{1$N} >= {10}?{x}:{$N}}"),
    *(
        "${{a}!={$N}}",
        "${{2.1} <=level {2.10} ? {$N}}",
        "$$",
        "$$N",
        "a",
        "b c",
        "10",
        "9",
        "",
        "{",
    ),
    *("}", "#", "=", "?", ":", "\t", "\n  ", "\n# x\n  ", ",", "ä"),
)


@pytest.mark.parametrize("seed", range(20))
def test_s164_texts_at_random_expand_alike(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    text, count = "mydomain = example.com\nmyhostname = h.example.com\n", 30
    for number in range(count):
        later = [*(f"n{n}" for n in range(number + 1, count)), "mydomain", "nowhere"]
        value = "".join(rng.choice(PIECES) for _ in range(rng.randrange(6)))
        for _ in range(value.count("N")):
            value = value.replace("N", rng.choice(later), 1)
        text += f"n{number} ={value}\n"
    text += "myorigin = " + " ".join(f"$n{n}" for n in range(count)) + "\n"
    configured(tmp_path, text)
    (tmp_path / "master.cf").touch()
    assert ours(tmp_path, expanded=False) == theirs(tmp_path)
    assert ours(tmp_path, expanded=True) == theirs(tmp_path, "-x")


# Defaults that are ours on purpose, and what the machine decides.
OUR_OWN = {
    "compatibility_level",  # no defaults depend on it here
    "config_directory",
    "data_directory",
    "default_database_type",  # the one table type without postmap(1)
    "mail_name",
    "mail_version",
    "mydestination",  # holds the names of this host
    "mydomain",
    "myhostname",
    "myorigin",
    "notify_classes",  # no transcripts unless asked for (S155), yet double bounces are told
    "lmtp_lhlo_name",
    "process_id",
    "process_name",
    "queue_directory",
    "smtp_helo_name",
    "smtp_tls_security_level",  # may, as since Postfix 3.11; lmtp_: the same as Postfix's
    "smtp_tls_mandatory_protocols",  # TLS 1.2 and up (S107)
    "lmtp_tls_mandatory_protocols",
    "smtp_tls_fingerprint_digest",  # sha256 (S120)
    "lmtp_tls_fingerprint_digest",
    "smtp_tls_connection_reuse",  # the process that made it holds it: no tlsproxy(8) needed
    "lmtp_tls_connection_reuse",
    "tls_high_cipherlist",  # as since Postfix 3.8 (S111 to S114)
    "tls_medium_cipherlist",
    "tls_low_cipherlist",
    "tls_export_cipherlist",
    "smtputf8_enable",  # as at the compatibility levels of today
}


def test_s164_defaults_are_postfixs_but_for_the_known_ones(tmp_path: Path) -> None:
    configured(tmp_path)
    (tmp_path / "master.cf").touch()
    lines = run("postconf", "-c", tmp_path, "-d", "-x").splitlines()
    theirs = {name: value.strip() for name, _, value in (line.partition(" =") for line in lines)}
    config = Config.from_mapping({})
    compared = sorted(PARAMETERS.keys() & theirs.keys() - OUR_OWN)
    assert len(compared) > 100
    values = show(config, compared, which=Which.DEFAULTS, form=Form.VALUES, expanded=True)
    assert dict(zip(compared, values, strict=True)) == {name: theirs[name] for name in compared}


def test_a_row_whose_default_is_not_postfixs_is_not_said_to_be_the_same() -> None:
    same = {row.parameter for row in rows() if row.ours == "same"}
    # Nobody has set these: the machine and the process decide.
    assert same & OUR_OWN == {"lmtp_lhlo_name", "process_id", "smtp_helo_name"}


def test_every_name_from_postfix_is_one_that_postfix_knows(tmp_path: Path) -> None:
    configured(tmp_path)
    (tmp_path / "master.cf").touch()
    known = {line.partition(" ")[0] for line in run("postconf", "-c", tmp_path, "-d").splitlines()}
    own = {name for name, row in PARAMETERS.items() if row.source == "postrio"}
    gone = {
        *("fallback_relay", "smtp_skip_4xx_greeting"),  # accepted for old configurations
        *("smtp_per_record_deadline", "lmtp_per_record_deadline", "lmtp_cache_connection"),
        "smtp_tls_cipherlist",
        # Younger than the Postfix that is here.
        *("smtp_sasl_password_result_delimiter", "lmtp_sasl_password_result_delimiter"),
        *("smtp_tls_enable_rpk", "lmtp_tls_enable_rpk"),
        *("smtp_log_tls_feature_status", "lmtp_log_tls_feature_status"),
    }
    pattern = {name for name in PARAMETERS if name.startswith(("smtp_", "lmtp_"))} & {
        f"{transport}_{rest}"
        for transport in ("smtp", "lmtp")
        for rest in (
            "destination_concurrency_failed_cohort_limit",
            "destination_concurrency_limit",
            "destination_concurrency_negative_feedback",
            "destination_concurrency_positive_feedback",
            "destination_rate_delay",
            "destination_recipient_limit",
            "initial_destination_concurrency",
            "transport_rate_delay",
        )
    }  # names made from master.cf
    assert PARAMETERS.keys() - known - own - gone - pattern == set()


# --- lookup tables -------------------------------------------------------------------------------

TEXTHASH = """\
# comment
A.com  one two
"a b"@x y
noval
b: c
a.com dup
\\ x z
"un q
k"k l" m
cont
  more
"""

CIDR = """\
192.168.1.0/24 net one
!127.0.0.0/8 notloop
if 127.0.0.0/16
127.0.1.0/24  inner
endif
::1 v6
[fd00::]/8 br
"""

REGEXP = """\
/^(a+)@(.*)$/  $1-${2}-$(1)-$$
/^foo$/i  casesens
!/@/ noat
if !/^[^@]*z/
/^if.*x$/ ifx
!/[xyz]$/ nested
endif
/[[:digit:]]+\\.com/ digits
/[]\\]$/ bracket
/(p)|(q)/ [$1][$2]
/b\\/c/ slash
|^pipe| pp
"""

KEYS = {
    "texthash": (
        *("a.com", "A.COM", '"a b"@x', "a b@x", "noval", "b:", "b", "\\ x", 'k"k l"', "cont"),
        *('"un', "q"),
    ),
    "cidr": (
        *("192.168.1.7", "127.0.1.5", "127.0.2.5", "127.1.1.1", "10.0.0.1", "::1", "fd00::3"),
        *("fe00::3", "host", "192.168.1"),
    ),
    "regexp": (
        *("aaa@b", "AAA@b", "foo", "FOO", "noat", "if@x", "if@q", "if@y", "zz@12.com", "zz@]"),
        *("zz@\\", "zp@a", "zq@a", "zb/c@", "pipe@z", "none@z"),
    ),
}
TABLES = {"texthash": TEXTHASH, "cidr": CIDR, "regexp": REGEXP}


def answer(lookup: Coroutine[object, None, str | None]) -> str:
    """What an in-memory lookup answers, as postmap prints it."""
    with pytest.raises(StopIteration) as caught:
        lookup.send(None)
    value: str | None = caught.value.value
    return "" if value is None else f"{value}\n"


def compare(directory: Path, spec: str, keys: tuple[str, ...]) -> None:
    table = open_table(spec, environ={}, clock=lambda: 0.0)
    said = {key: answer(table.lookup(key)) for key in keys}
    assert said == {key: run("postmap", "-c", directory, "-q", key, spec) for key in keys}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_in_files_answer_alike(tmp_path: Path, kind: str) -> None:
    configured(tmp_path)
    write_old(tmp_path / "table", TABLES[kind])
    compare(tmp_path, f"{kind}:{tmp_path}/table", KEYS[kind])


@pytest.mark.parametrize(
    "spec",
    [
        "inline:{a=b, {A1 = x y, z}, { c=d }}",
        "inline:{a=1 a=2}",
        "static:text",
        "static:{two  words}",
        "regexp:{{/^a/ b}, {/1/ y}}",
        "cidr:{{1.2.3.0/24 x}}",
    ],
)
def test_tables_in_place_answer_alike(tmp_path: Path, spec: str) -> None:
    configured(tmp_path)
    compare(tmp_path, spec, ("a", "A1", "a1", "c", "1.2.3.4"))


def test_tables_that_postfix_refuses_are_refused(tmp_path: Path) -> None:
    specs = ("inline:{}", "inline:{a}", "static:{a}b", "static:", "nosuch:x")
    program = find_program("postmap")
    assert program is not None
    running = [  # all at once: each takes a second to die
        subprocess.Popen(
            [program, "-c", configured(tmp_path), "-q", "a", spec],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for spec in specs
    ]
    assert {process.wait() for process in running} == {1}
    for spec in specs:
        with pytest.raises(TableConfigError):
            open_table(spec, environ={}, clock=lambda: 0.0)


# --- lists to match ------------------------------------------------------------------------------

# postqueue(1) tells an ordinary user that the mail system is down, or, if authorized_mailq_users, a
# string list, has not the name of that user, to go away: so it says who is on a list.
VERDICTS = {"mail system is down": "on", "is not allowed to view": "off"}


@pytest.fixture
def opened_directory() -> Iterator[Path]:
    """A directory that everybody may enter, which tmp_path is not, with a postqueue of its own.

    The installed one has the rights of a group, and so takes no configuration from us.
    """
    with tempfile.TemporaryDirectory(prefix="lists-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "queue" / "public").mkdir(parents=True)
        program = find_program("postqueue")
        assert program is not None
        shutil.copyfile(program, directory / "postqueue")
        (directory / "postqueue").chmod(0o755)
        write_old(directory / "names", "# nobody\nx, !static:{},y\n\tZ NoBody # !nobody\n")
        write_old(directory / "others", f"x\n{directory}/names\n")
        write_old(directory / "except", "!nobody\n")
        write_old(directory / "empty", "")
        yield directory


def their_verdict(directory: Path, value: str) -> str:
    """What Postfix says of nobody and this list: on, off or failed."""
    configured(
        directory,
        f"compatibility_level=3.6\nqueue_directory={directory}/queue\nmail_owner=postfix\n"
        f"authorized_mailq_users = {value}\n",
    )
    done = subprocess.run(
        [directory / "postqueue", "-c", directory, "-p"],
        capture_output=True,
        text=True,
        check=False,
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
    )
    fatal = done.stderr.splitlines()[-1]
    return next((verdict for text, verdict in VERDICTS.items() if text in fatal), "failed")


def our_verdict(value: str) -> str:
    """What we say of it."""
    try:
        listed = open_string_list(split_list(value), environ={}, clock=lambda: 0.0)
        with pytest.raises(StopIteration) as caught:
            listed.matches("nobody").send(None)
    except (BadValueError, TableConfigError, TableError):
        return "failed"
    return "on" if caught.value.value else "off"


LISTS = (
    *("", "nobody", "NOBODY, x", "x y", "!nobody, static:all", "!!nobody", "! nobody", "!"),
    *("!x, nobody", "nobody, !nobody", "!nobody, nobody", "{nobody}", "[nobody]", "x #nobody"),
    *("x, #y nobody", "inline:{nobody=x}", "!inline:{nobody=x} static:all", "inline:{nobody=x"),
    *("static:{}", "fail:x nobody", "nobody fail:x", "nobody:", ":nobody", "nosuch:x nobody"),
    *("@/names", "!@/names static:all", "@/others", "!@/others, static:all", "@/except nobody"),
    *("!@/except", "@/empty nobody", "!@/empty", "@/nowhere nobody", "nobody @/nowhere"),
)


@pytest.mark.peer("root", "postqueue")
def test_lists_have_the_same_keys_on_them(opened_directory: Path) -> None:
    lists = [text.replace("@", str(opened_directory)) for text in LISTS]
    said = {text: our_verdict(text) for text in lists}
    assert said == {text: their_verdict(opened_directory, text) for text in lists}
    assert set(said.values()) == {"on", "off", "failed"}
