"""What a load came to, for people and as JSON."""

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.source.load import Phase
from bench.source.tally import PERCENTILES, Outcome, Sampled, Tally

FORMAT: Final = 1  # of the JSON; another number when a field changes its meaning
BUSY: Final = 0.85  # of a processor: a source that used more of one waited for itself
CROWDED: Final = 0.05  # of the time: more than that shows in the percentiles
# RFC 3207 section 4: "Must issue a STARTTLS command first"; RFC 4954 section 6: AUTH
SECURITY_FIRST: Final = 530


def show(tally: Tally, console: Console) -> None:
    """Print everything: what became of the messages, times, replies, failures, and caveats."""
    console.print(_summary(tally))
    if tally.latencies:
        console.print(_times(tally))
    if tally.replies:
        console.print(_samples("reply", ((p.value, str(c), s) for (p, c), s in _replies(tally))))
    if tally.failures:
        rows = ((phase.value, kind.value, seen) for (phase, kind), seen in tally.failures.items())
        console.print(_samples("failure", rows))
    for line in caveats(tally):
        console.print(Text(line), style="yellow")


def caveats(tally: Tally) -> Iterator[str]:
    """What the figures do not show, or why they are what they are; whole sentences."""
    if tally.gave_up:
        yield f"Gave up: {tally.gave_up}"
    if tally.seconds and tally.cpu / tally.seconds > BUSY:
        yield (
            f"The source was busy {tally.cpu / tally.seconds:.0%} of the time: rate and times are"
            " as much its own as the server's."
        )
    if tally.seconds and tally.queued / tally.seconds > CROWDED:
        yield (
            f"The source waited {tally.queued / tally.seconds:.0%} of the time for a processor that"
            " others had: rate and times have that in them."
        )
    if any(code == SECURITY_FIRST for _, code in tally.replies):
        yield "The server may want STARTTLS or AUTH first (530): --starttls, --auth."


def as_json(tally: Tally) -> dict[str, object]:
    """Every figure, times in seconds; histograms whole, in HdrHistogram's form (microseconds)."""
    return {
        "format": FORMAT,
        "seconds": tally.seconds,
        "cpu": tally.cpu,
        "waited_for_processor": tally.queued,
        "rate": tally.rate,
        "messages_begun": tally.begun,
        "messages": {outcome.value: tally.messages[outcome] for outcome in Outcome},
        "recipients": {outcome.value: count for outcome, count in tally.recipients.items()},
        "connections": tally.connections,
        "stale_connections": tally.stale,
        "octets": tally.octets,
        "gave_up": tally.gave_up,
        "times": {
            phase.value: {
                "count": latencies.count,
                "mean": latencies.mean,
                **{f"p{percent:g}": latencies.percentile(percent) for percent in PERCENTILES},
                "max": latencies.longest,
                "histogram": latencies.encoded(),
            }
            for phase, latencies in tally.timed()
        },
        "replies": [
            {"phase": phase.value, "code": code, "count": seen.count, "sample": seen.sample}
            for (phase, code), seen in _replies(tally)
        ],
        "failures": [
            {"phase": phase.value, "kind": kind.value, "count": seen.count, "sample": seen.sample}
            for (phase, kind), seen in tally.failures.items()
        ],
    }


def _summary(tally: Tally) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column()
    counts = [f"{count} {outcome.value}" for outcome, count in _outcomes(tally)]
    cut_off = tally.begun - sum(tally.messages.values())
    if cut_off:
        counts.append(f"{cut_off} cut off")
    table.add_row("messages", ", ".join(counts) or "none")
    if tally.recipients.total() != sum(tally.messages.values()):
        words = [f"{count} {outcome.value}" for outcome, count in tally.recipients.items() if count]
        table.add_row("recipients", ", ".join(words) or "none")
    stale = f", {tally.stale} closed by the server between messages" if tally.stale else ""
    table.add_row("connections", f"{tally.connections}{stale}")
    table.add_row("time", f"{tally.seconds:.3f} s, {tally.cpu:.3f} s of the source's CPU")
    if tally.accepted:
        octets = tally.octets / tally.seconds / 1e6 if tally.seconds else 0.0
        per_cpu = f", {tally.accepted / tally.cpu:.0f} per CPU second" if tally.cpu else ""
        table.add_row("accepted", f"{tally.rate:.1f} messages/s, {octets:.3f} MB/s{per_cpu}")
    return table


def _outcomes(tally: Tally) -> Iterator[tuple[Outcome, int]]:
    for outcome in Outcome:
        if tally.messages[outcome]:
            yield outcome, tally.messages[outcome]


def _times(tally: Tally) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    table.add_column("phase")
    for name in ("count", *(f"p{percent:g}" for percent in PERCENTILES), "max"):
        table.add_column(name, justify="right")
    for phase, latencies in tally.timed():
        values = [latencies.percentile(percent) for percent in PERCENTILES]
        cells = [f"{value * 1000:.3f}" for value in (*values, latencies.longest)]
        table.add_row(phase.value, str(latencies.count), *cells)
    return table


def _samples(what: str, rows: Iterator[tuple[str, str, Sampled]]) -> Table:
    table = Table()
    table.add_column("phase")
    table.add_column(what)
    table.add_column("count", justify="right")
    table.add_column("the first one")
    for phase, kind, seen in rows:
        table.add_row(phase, kind, str(seen.count), Text(seen.sample))  # no markup: it is theirs
    return table


def _replies(tally: Tally) -> list[tuple[tuple[Phase, int], Sampled]]:
    """In the order of a dialogue, then by code."""
    order = list(Phase)
    return sorted(tally.replies.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
