"""One node's queue process: store, scheduler, doors and the processes it keeps, in one nursery.

`run_pool` is what `postrio run` calls. Order matters on the way in (the queue is locked before
anything else is touched, the doors open last) and on the way out: doors close, the scheduler stops
claiming, workers finish what is past DATA, outcomes become durable, the cache ends after the last
worker, and only then the store closes. Signals are obeyed from the first moment to the last, and
nothing is waited for without limit: what does not end is killed.
"""

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.pool.cache_process import Arguments, CacheProcess
from worker.pool.child import Start, start_process
from worker.pool.workers import Workers, worker_command
from worker.queue.client import LOCK_PATIENCE, LOCK_PAUSE, is_served
from worker.queue.listening import DoorLimits
from worker.queue.routing import Router
from worker.queue.scheduler import Scheduler
from worker.queue.service import CONTROL_SOCKET, SUBMIT_SOCKET, serve_control, serve_submissions
from worker.queue.settings import QueueSettings
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import StoreLocked
from worker.status.events import Emit, Noted, Warned

# Seconds, besides postrio_shutdown_timeout, in which processes without work end by themselves.
END_TIMEOUT: Final = 5.0
NO_WORKER: Final = "no worker can start with this configuration: run 'postrio check'"


class NoWorkerError(Exception):
    """No worker can live with the configuration. Each has said why, on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node is made of, besides its configuration."""

    load: Callable[[], Config]  # reads the configuration anew; raises ConfigError
    arguments: Sequence[str]  # of `postrio worker`: the same configuration, the same log
    cache: Arguments  # the command line of the connection cache under a configuration
    emit: Emit
    wall: Callable[[], float]
    follow: Callable[[Config], None]  # SIGHUP: the log and whatever else the process has
    # None: as a child of ours. Else they live where they cannot read a configuration again.
    start_worker: Start | None = None


async def run_pool(
    node: Node,
    workers: int,
    *,
    task_status: trio.TaskStatus[Scheduler] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node with `workers` worker processes until SIGTERM or SIGINT.

    Raises ConfigError, StoreError, OSError if it cannot start; nothing was changed then. Raises
    NoWorkerError where only workers see that the configuration is wrong.
    """
    # From here on no reload is lost, however long it takes to open the queue.
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        await _run_pool(node, workers, hangups, task_status)


async def _run_pool(
    node: Node,
    workers: int,
    hangups: AsyncIterator[int],
    task_status: trio.TaskStatus[Scheduler],
) -> None:
    config = node.load()
    directory = Path(config.text("queue_directory"))
    store = await _open_queue(node, config, directory)
    try:
        (directory / "private").mkdir(mode=0o700, exist_ok=True)
        cache = CacheProcess(config, node.cache, node.emit)
        processes = Workers(
            directory / "private",
            workers,
            worker_command(node.arguments),
            node.emit,
            start=node.start_worker or start_process,
            refused=lambda: pool.give_up(),
        )
        scheduler = Scheduler(
            store,
            processes,
            QueueSettings.from_config(config, workers),
            Router.from_config(config),
            node.emit,
            node.wall,
        )
        pool = _Pool(node, workers, config, store, processes, cache, scheduler)
        await pool.run(directory, hangups, task_status)
        if pool.given_up:
            raise NoWorkerError(NO_WORKER)
    finally:
        # For those who did not come to run(), which does it otherwise.
        with trio.CancelScope(shield=True):  # pending commits: bounded by the disk, not by peers
            await store.aclose()


async def _open_queue(node: Node, config: Config, directory: Path) -> SqliteStore:
    """The queue; waits a little if a command has it open, as commands do for us.

    Raises as open_store().
    """
    patience = trio.current_time() + LOCK_PATIENCE
    waiting = False
    while True:
        try:
            return await open_store(
                directory,
                settings=StoreSettings(
                    message_size_limit=config.integer("message_size_limit"),
                    queue_minfree=config.integer("queue_minfree"),
                ),
                warn=lambda text: node.emit(Warned(text)),
                wall=node.wall,
            )
        except StoreLocked as exc:
            if trio.current_time() >= patience or await is_served(directory):
                raise
            if not waiting:
                node.emit(Noted(f"{exc}: waiting for it"))
            waiting = True
        await trio.sleep(LOCK_PAUSE)


class _Pool:
    """The running parts, and what signals do to them."""

    def __init__(
        self,
        node: Node,
        workers: int,
        config: Config,
        store: SqliteStore,
        processes: Workers,
        cache: CacheProcess,
        scheduler: Scheduler,
    ) -> None:
        self._node = node
        self._workers = workers  # how many were started; a reload does not change it
        self._config = config
        self._store = store
        self._processes = processes
        self._cache = cache
        self._scheduler = scheduler
        self._everything = trio.CancelScope()  # but for the signals
        self._starting = trio.CancelScope()
        self._doors = trio.CancelScope()
        self._stopping = False
        self._aborted = False  # by a second signal
        self.given_up = False  # no worker can live with the configuration
        self._hangup = trio.Event()  # a reload is wanted that has not begun

    async def run(
        self,
        directory: Path,
        hangups: AsyncIterator[int],
        task_status: trio.TaskStatus[Scheduler],
    ) -> None:
        """Everything at once, until a signal says stop. Closes the store."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as listening:
                listening.start_soon(self._obey, signals)
                listening.start_soon(self._note_hangups, hangups)
                try:
                    with self._everything:
                        await self._live(directory, task_status)
                    if self._everything.cancelled_caught and not self._aborted:
                        self._node.emit(Warned("killed the processes that did not end in time"))
                    self._node.emit(Noted("daemon stopped"))
                finally:
                    # Here, because a signal that nobody reads would end us before that is done.
                    with trio.CancelScope(shield=True):
                        await self._store.aclose()
                    listening.cancel_scope.cancel()

    async def _live(self, directory: Path, task_status: trio.TaskStatus[Scheduler]) -> None:
        """From the start of the processes to their ends."""
        async with trio.open_nursery() as outer:
            outer.start_soon(self._keep_processes)
            async with trio.open_nursery() as nursery:
                with self._starting:
                    await nursery.start(self._schedule, nursery.cancel_scope)
                    await nursery.start(self._open_doors, directory)
                if not self._starting.cancelled_caught:
                    nursery.start_soon(self._reload_when_asked)
                    self._node.emit(Noted("daemon started"))
                    task_status.started(self._scheduler)
            # The scheduler has ended, and with it the last slot: the workers have no work.
            self._processes.stop()
            limit = self._config.seconds("postrio_shutdown_timeout") + END_TIMEOUT
            self._everything.deadline = trio.current_time() + limit

    async def _keep_processes(self) -> None:
        """Workers, and the cache for as long as there are any."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cache.run)
            await self._processes.run()
            self._cache.stop()

    async def _schedule(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The scheduler's life is the node's."""
        await self._scheduler.run(task_status=task_status)
        everything.cancel()

    async def _open_doors(
        self,
        directory: Path,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take submissions and orders until the doors are closed."""
        node, limits = self._node, DoorLimits(ipc_timeout=self._config.seconds("ipc_timeout"))
        with self._doors:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(
                        serve_submissions,
                        directory / SUBMIT_SOCKET,
                        self._store,
                        limits,
                        node.emit,
                        node.wall,
                        self._scheduler.wake,
                    )
                )
                await nursery.start(
                    partial(
                        serve_control,
                        directory / CONTROL_SOCKET,
                        self._store,
                        limits,
                        node.emit,
                        node.wall,
                        self._scheduler.flush,
                        self._status,
                    )
                )
                task_status.started()

    def _status(self) -> dict[str, str | int | float]:
        return {
            "active_messages": self._scheduler.active_messages,
            "open_slots": self._scheduler.open_slots,
        }

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        """SIGTERM, SIGINT: orderly end; a second one: at once.

        Never waits for anything but signals.
        """
        async for number in signals:
            if not self._stopping:
                self._node.emit(Noted(f"stopping on {signal.Signals(number).name}"))
                self._stop()
            elif not self._aborted:
                self._aborted = True
                self._node.emit(Noted("stopped by a second signal"))
                self._everything.cancel()

    async def _note_hangups(self, hangups: AsyncIterator[int]) -> None:
        """SIGHUP: new configuration."""
        async for _ in hangups:
            self._hangup.set()

    def give_up(self) -> None:
        """No worker can live with the configuration: whoever has started us should know now.

        Not later: a configuration that was good once, and mail that is queued, are worth waiting.
        """
        if not self._stopping:
            self.given_up = True
            self._node.emit(Warned(NO_WORKER))
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._starting.cancel()
        self._doors.cancel()
        self._scheduler.stop()
        self._processes.stop()

    async def _reload_when_asked(self) -> None:
        """One reload at a time; all that was asked for during one is another one after it."""
        while True:
            await self._hangup.wait()
            self._hangup = trio.Event()
            await self._reload()

    async def _reload(self) -> None:
        node = self._node
        try:
            # Abandoned when we end: a file may be one that cannot be read to its end.
            config = await trio.to_thread.run_sync(node.load, abandon_on_cancel=True)
            settings = QueueSettings.from_config(config, self._workers)
            router = Router.from_config(config)
            self._cache.check(config)
            node.follow(config)  # the last that may fail: until then nothing has changed
        except (ConfigError, OSError) as exc:
            node.emit(Warned(f"configuration not reloaded: {exc}"))
            return
        self._config = config
        self._cache.reload(config)
        self._scheduler.reload(settings, router)
        if node.start_worker is None:
            self._processes.reload()
        else:
            self._processes.replace()
        node.emit(Noted("configuration reloaded"))
