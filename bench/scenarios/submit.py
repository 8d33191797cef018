"""submit: messages that are accepted durably in a second, from 1, 20 and 100 clients.

Nothing is delivered meanwhile. Postfix takes mail over SMTP (smtpd(8) and cleanup(8)) and has no
queue manager in this scenario. postrio takes it over its submission socket; its queue manager runs,
but one message is all that it may have active, and the server of that one never says a word.
"Accepted" is fsynced with both, and each client waits for it before its next message.

The interfaces differ, and so do the clients: the source of `bench/source/` for SMTP (its fastest
dialogue: pipelining, connections that stay), postrio's submission client for the other. Both run on
trio in the process of the harness, on the same processors as the server; what they cost is a figure
of its own, so that a reader sees how much of the machine was left. Each turn has a server of its
own, with an empty queue, and begins with a few messages from every client that do not count:
master(8) starts its processes then.

What it does not show: mail that is delivered at the same time. See `drain` for the other half.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from bench.drain import NO_QMGR, QUIET
from bench.harness.costs import session_cpu
from bench.harness.scenario import Figure, LoadError, Scenario, Target, Turn
from bench.postfix_instance import PostfixInstance, missing_program
from bench.postrio_instance import PostrioInstance, submit_concurrently
from bench.source.load import Load as SourceLoad
from bench.source.messages import Composer, Envelopes, Generated
from bench.source.run import run
from bench.source.tally import Outcome, Tally, missing_library
from bench.source.target import Target as Server
from bench.source.target import dialler
from worker.queue.store import StoreError, SubmissionRefused

CLIENTS: Final = (1, 20, 100)
WARM_UP: Final = 2  # messages of each client that do not count
REST: Final = 0.5  # seconds without CPU after which a server counts as started
REST_LIMIT: Final = 30.0  # seconds
DOMAINS: Final = ("d0.example",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is submitted in each turn."""

    messages: int = 3000  # by all clients of a turn together
    alone: int = 600  # messages by a single client, which waits for the disk each time
    size: int = 4096  # octets of each


QUICK: Final = Load(messages=200, alone=20)

# Submits so many messages over so many clients, and returns the seconds it took.
Submit = Callable[[int, int], float]


def scenario(load: Load) -> Scenario:
    """The scenario under this load."""
    missing = missing_program() or missing_library()
    sides = {"postrio": partial(_postrio, load), "Postfix": partial(_postfix, load)}
    contenders: dict[str, Turn] = {}
    left_out: dict[str, str] = {}
    for clients in CLIENTS:
        for side, turn in sides.items():
            name = _name(side, clients)
            if side == "Postfix" and missing:
                left_out[name] = f"missing: {missing}"
            else:
                contenders[name] = partial(turn, clients)
    return Scenario(
        name="submit",
        about=f"{load.messages} messages of {load.size} octets ({load.alone} from a single client)"
        " are accepted durably, and not delivered",
        figures=(
            Figure(name="rate", unit="messages/s"),
            Figure(name="per_cpu", unit="messages per CPU second of the server"),
            Figure(name="client_cpu", unit="CPU ms of the clients a message", more_is_better=False),
        ),
        contenders=contenders,
        missing=left_out,
        targets=(
            Target(
                figure="rate",
                at_least=2.0,
                contender=_name("postrio", 20),
                against=_name("Postfix", 20),
            ),
        ),
        base=_name("postrio", 20),
    )


def _name(side: str, clients: int) -> str:
    return f"{side}, {clients} client{'s' if clients > 1 else ''}"


def _postrio(load: Load, clients: int) -> Mapping[str, float]:
    """One turn of postrio. Raises LoadError."""
    try:
        with _silent_server() as nexthop, PostrioInstance(main_cf=_held(nexthop)) as postrio:

            def submit(messages: int, clients: int) -> float:
                rate = trio.run(
                    submit_concurrently,
                    *(postrio.queue_directory, messages, clients, DOMAINS, load.size),
                )
                return messages / rate

            return _figures(load, clients, submit, postrio.pid)
    except (StoreError, SubmissionRefused) as exc:
        raise LoadError(f"postrio: {exc}") from exc


@contextmanager
def _silent_server() -> Iterator[str]:
    """The nexthop of a server that the kernel connects, and nobody ever answers for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"[127.0.0.1]:{listener.getsockname()[1]}"


def _held(nexthop: str) -> Mapping[str, str]:
    """Parameters of a postrio that accepts mail, and delivers none for some minutes."""
    return {"default_transport": f"smtp:{nexthop}", "qmgr_message_active_limit": "1"}


def _postfix(load: Load, clients: int) -> Mapping[str, float]:
    """One turn of Postfix. Raises LoadError."""
    with PostfixInstance(main_cf=QUIET, master_cf=[NO_QMGR]) as postfix:
        server = Server(host=postfix.host, port=postfix.port)

        def submit(messages: int, clients: int) -> float:
            return submit_over_smtp(server, messages, clients, load.size)

        figures = _figures(load, clients, submit, postfix.pid)
        wanted = _count(load, clients) + WARM_UP * clients
        if (queued := postfix.queued("incoming")) != wanted:
            raise LoadError(f"Postfix has {queued} of {wanted} messages in its queue")
        return figures


def _count(load: Load, clients: int) -> int:
    return load.alone if clients == 1 else load.messages


def _figures(load: Load, clients: int, submit: Submit, server: int) -> Mapping[str, float]:
    """Warm up, submit, and say what it cost. `server`: leads the session of its processes."""
    submit(WARM_UP * clients, clients)
    _wait_for_rest(server)
    messages = _count(load, clients)
    before, own = sum(session_cpu(server).values()), time.process_time()
    seconds = submit(messages, clients)
    own = time.process_time() - own
    cost = sum(session_cpu(server).values()) - before
    return {
        "rate": messages / seconds,
        # CPU is counted in ticks of 10 ms: a load of a few messages may come to none.
        "per_cpu": messages / max(cost, 0.01),
        "client_cpu": own / messages * 1000,
    }


def _wait_for_rest(server: int) -> None:
    """Return when the processes of `server` have used no CPU for a while. Raises LoadError.

    postrio takes submissions before its workers have started, which costs as much as hundreds of
    messages.
    """
    deadline = time.monotonic() + REST_LIMIT
    before, now = -1.0, sum(session_cpu(server).values())
    while now > before:
        if time.monotonic() > deadline:
            raise LoadError(f"the server is still busy after {REST_LIMIT:g} s without a message")
        time.sleep(REST)
        before, now = now, sum(session_cpu(server).values())


def submit_over_smtp(server: Server, messages: int, clients: int, size: int) -> float:
    """Seconds until the last of so many messages is accepted. Raises LoadError if one is not."""
    tally = Tally()
    envelopes = Envelopes("load@source.example", f"user@{DOMAINS[0]}")

    async def submit() -> None:
        load = SourceLoad(sessions=clients, messages=messages)
        composer = Composer(envelopes, Generated(lambda: size, "submit"))
        await run(load, await dialler(server), composer, tally)

    trio.run(submit)
    if (accepted := tally.messages[Outcome.ACCEPTED]) != messages:
        bad = [seen.sample for (_, code), seen in tally.replies.items() if code >= 400]
        why = [*bad, *(seen.sample for seen in tally.failures.values())]
        raise LoadError(f"{server} accepted {accepted} of {messages} messages: {'; '.join(why)}")
    return tally.seconds
