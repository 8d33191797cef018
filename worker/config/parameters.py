"""The table of all parameters: every name that is known, once, with everything known about it.

The rows stand in the modules `rows_*.py`; the columns are explained in `parameter.py`. Here they
become one mapping, the lmtp_ twins (requirements S172) are generated, and the names of the
per-transport pattern `<transport>_destination_...` are understood.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from protocol.request import Protocol
from worker.config.parameter import Kind, Parameter, Twin
from worker.config.rows_cache import CACHE
from worker.config.rows_client import CLIENT
from worker.config.rows_content import CONTENT
from worker.config.rows_general import GENERAL
from worker.config.rows_queue import QUEUE
from worker.config.rows_sasl import SASL
from worker.config.rows_tls import TLS

__all__ = ["PARAMETERS", "TRANSPORT_SUFFIXES", "Kind", "Parameter", "Twin", "find", "mirror_name"]

# What may follow `<transport>_`, and the parameter that rules where no such name is set.
TRANSPORT_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        "destination_concurrency_limit": "default_destination_concurrency_limit",
        "destination_concurrency_positive_feedback": (
            "default_destination_concurrency_positive_feedback"
        ),
        "destination_concurrency_negative_feedback": (
            "default_destination_concurrency_negative_feedback"
        ),
        "destination_concurrency_failed_cohort_limit": (
            "default_destination_concurrency_failed_cohort_limit"
        ),
        "destination_recipient_limit": "default_destination_recipient_limit",
        "destination_rate_delay": "default_destination_rate_delay",
        "transport_rate_delay": "default_transport_rate_delay",
        "initial_destination_concurrency": "initial_destination_concurrency",
    }
)

_TRANSPORT_NAME = re.compile(
    r"(?P<transport>[A-Za-z0-9][A-Za-z0-9_.-]*?)_(?P<suffix>"
    + "|".join(sorted(TRANSPORT_SUFFIXES, key=len, reverse=True))
    + ")"
)


def _build(rows: Sequence[Parameter]) -> Mapping[str, Parameter]:
    table: dict[str, Parameter] = {}
    for row in _with_twins(rows):
        if row.name in table:
            raise AssertionError(f"{row.name} is in the table twice")
        table[row.name] = row
    for transport in ("smtp", "lmtp"):  # they exist even where nobody sets them (S133, S134)
        for suffix in TRANSPORT_SUFFIXES:
            row = _for_transport(table, transport, suffix)
            table[row.name] = row
    return MappingProxyType(dict(sorted(table.items())))


def _with_twins(rows: Sequence[Parameter]) -> Iterator[Parameter]:
    written = {row.name for row in rows}
    for row in rows:
        yield row
        twin = row.twin()
        if twin is not None and twin.name not in written:
            yield twin


def _for_transport(table: Mapping[str, Parameter], transport: str, suffix: str) -> Parameter:
    base = table[TRANSPORT_SUFFIXES[suffix]]
    return replace(
        base,
        name=f"{transport}_{suffix}",
        default=f"${base.name}",
        summary=f"As {base.name}, for the transport {transport}.",
    )


PARAMETERS: Mapping[str, Parameter] = _build(
    (*CLIENT, *CONTENT, *TLS, *SASL, *CACHE, *QUEUE, *GENERAL)
)


def find(name: str) -> Parameter | None:
    """The row of a name: from the table, or made for `<transport>_destination_...`; else None."""
    row = PARAMETERS.get(name)
    if row is not None:
        return row
    match = _TRANSPORT_NAME.fullmatch(name)
    if match is None or match["transport"] == "default":
        return None
    return _for_transport(PARAMETERS, match["transport"], match["suffix"])


def mirror_name(name: str, protocol: Protocol) -> str:
    """The parameter to read for this protocol in place of `name` (an smtp_ name, S172).

    Where there is no twin, and for SMTP, it is `name` itself.
    """
    row = PARAMETERS[name]
    if protocol is Protocol.SMTP or row.mirror is None:
        return name
    return row.mirror.name
