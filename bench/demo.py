"""The demonstration of `make run`: postrio delivers the messages in `examples/` on loopback.

Answers for the order of things: a DNS responder and mail hosts (`demo_scene.py`), `postrio run` as
a child process, one `postrio send` for each example, and what is seen of it (`demo_view.py`).
Start reading at `demonstrate`.

The queue under `var/` is kept from run to run: what an interrupted run left there is delivered by
the next one. `make clean` forgets it.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from email.utils import getaddresses
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.live import Live

from bench.demo_scene import ZONE, free_common_port, listens, write_main_cf
from bench.demo_view import Deliveries
from bench.dns import serve_dns
from bench.dns_zone import Zone
from bench.sink.command import leaves
from bench.sink.sink import Sink
from bench.sink.trio_lane import serve_sinks
from worker.cli.exits import CommandError, run_command

READY_LIMIT: Final = 10.0  # seconds for `postrio run` to say its first word
STOP_LIMIT: Final = 20.0  # seconds for it to stop after SIGTERM
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """The demonstration cannot go on: why, for people."""


class Demonstration:
    """The state that the parts of one demonstration share.

    `say` takes one line for people, `show` one line of the log, `draw` is called when a delivery
    changed.
    """

    def __init__(
        self,
        *,
        var: Path,
        examples: Path,
        say: Callable[[str], None],
        show: Callable[[str], None],
        draw: Callable[[Deliveries], None],
    ) -> None:
        self.var = var
        self.examples = examples
        self.say = say
        self.show = show
        self.draw = draw
        self.deliveries = Deliveries()
        self.ready = trio.Event()  # `postrio run` speaks
        self.submitted = False  # all examples are
        self.settled = trio.Event()  # they, and every notice about them, left the queue
        self.interruptible = trio.CancelScope()  # what a signal ends; stopping comes after it
        self.exit_status: int | None = None  # of `postrio run`; None while it runs
        self.log_tail: deque[str] = deque(maxlen=10)

    def note(self) -> None:
        """Something changed: draw it, and see whether all is done."""
        self.draw(self.deliveries)
        if self.submitted and not self.deliveries.unsettled:
            self.settled.set()


def postrio_command() -> str:
    """The `postrio` beside this interpreter. Raises DemoError."""
    command = Path(sys.executable).with_name("postrio")
    if not command.exists():
        raise DemoError(f"{command} does not exist: install the project first (make run does)")
    return str(command)


async def demonstrate(demo: Demonstration, *, limit: float | None) -> None:
    """Run the scene until every example is settled; with no `limit` (seconds) until interrupted.

    Raises DemoError when postrio does not work, or the limit passes before all is settled.
    """
    command = postrio_command()
    async with trio.open_nursery() as world:  # outlives postrio: sessions can end in good order
        dns_port = await world.start(serve_dns, Zone.from_text(ZONE))
        main_cf = await _open_hosts(world, demo.var, dns_port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_postrio_run, [command, "run", "-c", str(main_cf)], demo)
            with demo.interruptible:
                await _submit_all(demo, command, main_cf)
                with trio.move_on_after(float("inf") if limit is None else limit):
                    await demo.settled.wait()
                if limit is None:
                    _say_what_next(demo, command, main_cf)
                    demo.say("Ctrl-C ends it.")
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        world.cancel_scope.cancel()
    if demo.exit_status:
        raise DemoError(f"postrio run ended with status {demo.exit_status}")
    if not demo.settled.is_set() and limit is not None:
        left = ", ".join(demo.deliveries.unsettled)
        raise DemoError(f"not settled, or interrupted, after at most {limit:.0f} s: {left}")
    if limit is not None:
        _say_what_next(demo, command, main_cf)


async def _submit_all(demo: Demonstration, command: str, main_cf: Path) -> None:
    """Send every example, as soon as postrio speaks."""
    with trio.move_on_after(READY_LIMIT):
        await demo.ready.wait()
    for path in sorted(demo.examples.glob("*.eml")):
        demo.deliveries.submit(await _send(command, main_cf, path), path.stem)
        demo.note()
    demo.submitted = True
    demo.note()


async def _open_hosts(nursery: trio.Nursery, var: Path, dns_port: int) -> Path:
    """Start the mail hosts in `nursery` and write a main.cf that leads to them; its path."""
    port = free_common_port()

    async def serve(task_status: trio.TaskStatus[list[Sink]]) -> None:
        await serve_sinks(listens(port), task_status=task_status)

    await nursery.start(serve)
    return write_main_cf(var, dns_port=dns_port, smtp_port=port)


async def _postrio_run(command: list[str], demo: Demonstration) -> None:
    """`postrio run` as a child, until cancelled: then SIGTERM, and its last words are shown.

    Raises DemoError when it ends by itself, or badly. A session of its own: Ctrl-C is for us, and
    we tell the child.
    """
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None  # it is a pipe
    async with process.stderr as stream:
        try:
            await _read_log(stream, demo)
            await process.wait()
            raise DemoError(f"postrio run ended with status {process.returncode}")
        except trio.Cancelled:
            with trio.move_on_after(STOP_LIMIT, shield=True):
                process.terminate()
                await _read_log(stream, demo)
                await process.wait()
            raise
        finally:
            if process.poll() is None:
                process.kill()
                with trio.CancelScope(shield=True):  # ends at once: nothing outlives SIGKILL
                    await process.wait()
            demo.exit_status = process.returncode


async def _read_log(stream: trio.abc.ReceiveStream, demo: Demonstration) -> None:
    """Feed every log line to the view, until the child closes its standard error."""
    unread = b""
    log_path = trio.Path(demo.var / "log")
    async with await log_path.open("ab") as log:
        async for data in stream:
            demo.ready.set()
            await log.write(data)
            await log.flush()
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                text = line.decode("utf-8", "replace")
                demo.log_tail.append(text)
                demo.show(text)
                if demo.deliveries.feed(text):
                    demo.note()


async def _send(command: str, main_cf: Path, path: Path) -> str:
    """Submit one example; returns its queue id. Raises DemoError.

    The envelope comes from the header: From: is the sender, `-t` takes To: and Cc:.
    """
    message = path.read_bytes()  # noqa: ASYNC240 - a small file of ours
    done = await trio.run_process(
        [command, "send", "-c", str(main_cf), "--sender", sender_of(message), "-t"],
        stdin=message,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    words = done.stdout.decode().split()
    if done.returncode or not words:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise DemoError(f"postrio send of {path.name} ended with {done.returncode}: {said}")
    return words[-1]


def sender_of(message: bytes) -> str:
    """The address in the From: field of a message, whatever its script; empty: there is none."""
    header = message.partition(b"\n\n")[0].decode("utf-8", "replace")
    fields = header.replace("\n ", " ").splitlines()
    values = [text.partition(":")[2] for text in fields if text.lower().startswith("from:")]
    return next((address for _, address in getaddresses(values)), "")


def _say_what_next(demo: Demonstration, command: str, main_cf: Path) -> None:
    """Where the queue is, and what to type next."""
    tool = os.path.relpath(command)
    config = os.path.relpath(main_cf)
    demo.say(f"The queue is in {os.path.relpath(demo.var / 'queue')}; look into it with")
    demo.say(f"  {tool} queue list -c {config}")
    demo.say("and put another message on it with")
    demo.say(
        f"  printf 'Subject: hello\\n\\nHello.\\n' | "
        f"{tool} send -c {config} --sender me@landlord.example you@tenants.example"
    )
    demo.say(
        "which is delivered while this runs, or by the next `make run`. Other domains to try: "
        "court.example (greylists), refuses.example, twin.example, mailbox.example (LMTP)."
    )


async def _until_signalled(demo: Demonstration, *, limit: float | None) -> None:
    """demonstrate(), ended in good order by SIGINT, SIGTERM or SIGHUP."""
    with trio.open_signal_receiver(*ENDINGS) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for _ in signals:
                    demo.interruptible.cancel()

            nursery.start_soon(listen)
            await demonstrate(demo, limit=limit)
            nursery.cancel_scope.cancel()


def _run(demo: Demonstration, *, limit: float | None) -> list[BaseException]:
    """Run it; what went wrong, if anything did."""
    failures: list[BaseException] = []
    try:
        trio.run(lambda: _until_signalled(demo, limit=limit))
    except* (DemoError, OSError) as group:
        failures.extend(leaves(group))
    return failures


def _run_live(demo: Demonstration) -> list[BaseException]:
    """_run() below a table that is redrawn with every change; ends by a signal only."""
    console = Console()
    with Live(demo.deliveries.table(), console=console, auto_refresh=False) as live:
        demo.say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
        demo.show = lambda _: None
        demo.draw = lambda deliveries: live.update(deliveries.table(), refresh=True)
        return _run(demo, limit=None)


@click.command()
@click.option("--once", is_flag=True, help="End when every example is settled.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds to wait for that.")
@click.option("--var", default="var", show_default=True, help="Directory for queue and main.cf.")
@click.option("--examples", default="examples", show_default=True, help="Where *.eml files are.")
def main(limit: float, var: str, examples: str, *, once: bool) -> None:
    """Deliver the examples to a little world on loopback, and show how it goes."""
    if not any(Path(examples).glob("*.eml")):
        raise CommandError(f"{examples}: no *.eml there: --examples DIRECTORY", os.EX_NOINPUT)
    demo = Demonstration(
        var=Path(var),
        examples=Path(examples),
        say=click.echo,
        show=click.echo,
        draw=lambda _: None,
    )
    live = sys.stdout.isatty() and not once
    failures = _run_live(demo) if live else _run(demo, limit=limit)
    click.echo(demo.deliveries.summary())
    for failure in failures:
        click.echo(f"demo: {failure}", err=True)
    if failures and live:
        click.echo("\n".join(demo.log_tail), err=True)
    sys.exit(os.EX_TEMPFAIL if failures else os.EX_OK)


if __name__ == "__main__":
    run_command("demo", lambda words: main.main(list(words), standalone_mode=False))
