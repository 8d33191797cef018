"""What the daemon tells of itself on request (`--status`): made here, and shown here.

JSON on the wire and for scripts, a table for people. Bounded: labels are cut, long lists end.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from protocol.attributes import AttributeList
from protocol.cache_wire import (
    ANNOUNCEMENT,
    MAX_REPORT,
    ListReader,
    ReportRequest,
    decode_report,
)
from protocol.errors import RemoteProtocolError
from protocol.reply import NEED_DATA
from scache.store import Store

_MOST: Final = 2000  # endpoints, and destinations, that are listed
_LABEL: Final = 200  # characters of a label
_PATIENCE: Final = 5.0  # seconds for the whole question


class NoReport(Exception):
    """The daemon did not answer: why."""


# --- the daemon's side ---------------------------------------------------------------------------


def make_report(store: Store, now: float, *, clients: int) -> str:
    """Contents and counts as JSON; times are seconds that are left."""
    endpoints = [
        {"label": label[:_LABEL], "connections": count, "expires": round(expires - now, 3)}
        for (label, count, expires), _ in zip(store.endpoints(), range(_MOST), strict=False)
    ]
    destinations = [
        {"label": label[:_LABEL], "endpoint": end[:_LABEL], "expires": round(expires - now, 3)}
        for (label, end, expires), _ in zip(store.destinations(), range(_MOST), strict=False)
    ]
    return json.dumps(
        {
            "pid": os.getpid(),
            "clients": clients,
            "connections": len(store),
            "counts": asdict(store.counts),
            "endpoints": endpoints,
            "destinations": destinations,
        }
    )


# --- the asking side -----------------------------------------------------------------------------


def ask_report(path: Path) -> str:
    """The report of the daemon that listens at `path`, as JSON. Raises NoReport."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(str(path))
            lists = _lists(sock)
            if next(lists) != ANNOUNCEMENT:
                raise NoReport(f"{path} is not the socket of a connection cache")
            sock.sendall(ReportRequest().encode())
            return decode_report(next(lists))
        except TimeoutError as exc:
            raise NoReport(f"{path} does not answer within {_PATIENCE:.0f} seconds") from exc
        except PermissionError as exc:
            raise NoReport(f"no right to {path}: be root, or the daemon's user") from exc
        except OSError as exc:
            raise NoReport(f"nobody answers at {path}: {exc.strerror or exc}") from exc
        except StopIteration as exc:
            raise NoReport(f"{path} hung up: it trusts neither this user nor its words") from exc
        except RemoteProtocolError as exc:
            raise NoReport(f"{path}: {exc}") from exc


def _lists(sock: socket.socket) -> Iterator[AttributeList]:
    lists = ListReader(MAX_REPORT)
    while data := sock.recv(65_536):
        lists.receive_data(data)
        while (event := lists.next_event()) is not NEED_DATA:
            yield event


def report_table(report: str) -> str:
    """The report for people."""
    found: Mapping[str, Any] = json.loads(report)
    counts = found["counts"]
    lines = [
        f"process {found['pid']}, {found['clients']} clients, {found['connections']} connections",
        "since the last statistics: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items() if value),
        "",
        f"{'connections':>11}  {'expires':>8}  endpoint",
    ]
    lines += [
        f"{entry['connections']:11}  {entry['expires']:7.1f}s  {_shown(entry['label'])}"
        for entry in found["endpoints"]
    ]
    lines += ["", f"{'':11}  {'expires':>8}  destination -> endpoint"]
    lines += [
        f"{'':11}  {entry['expires']:7.1f}s  "
        f"{_shown(entry['label'])} -> {_shown(entry['endpoint'])}"
        for entry in found["destinations"]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _shown(label: str) -> str:
    """A label on one line: its fields end with line ends."""
    text = label.rstrip("\n").replace("\n", " ")
    return "".join(char if char.isprintable() else "?" for char in text)
