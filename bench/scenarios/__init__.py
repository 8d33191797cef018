"""Scenarios, one small file each. A module here has a `Load`, a `QUICK` load and `scenario(load)`.

Answers for the table of their names and for loading one. A name with a hyphen is in a module with
an underscore.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.harness.scenario import LoadError, Scenario

# Name -> its line of help, so that a list loads none of them.
SCENARIOS: Final[Mapping[str, str]] = {
    "drain": "Drain a full queue into a fast sink, beside Postfix.",
    "engine": "Deliver from memory over reused sessions, beside other SMTP clients.",
    "tls": "Deliver inside TLS: over sessions reused, shared and new.",
    "latency": "Deliver to servers that take 50 ms for each reply.",
    "slow": "Hold 5,000 deliveries at once to servers that take 5 s for each reply.",
    "dead-mx": "Deliver while most of a domain's mail hosts never answer.",
    "cache": "Save connections and find them again, beside scache(8).",
    "scale": "Deliver from queues of 1,000 to 200,000 messages.",
    "submit": "Take in messages durably from 1, 20 and 100 clients.",
    "big": "Deliver messages of 10 MB.",
    "transforms": "Convert 10 MB to quoted-printable; check headers by 1,000 rules.",
    "sinks": "Take mail, beside smtp-sink.",
    "workers": "Deliver with one worker process and with two.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a scenario's module offers: two loads, and the scenario for a load of that type."""

    name: str
    usual: object  # Load()
    quick: object  # QUICK: seconds in all
    build: Callable[[object], Scenario]


def load_scenario(name: str) -> Definition:
    """The definition of a scenario in the table. Raises LoadError: its module is not there."""
    module_name = f"bench.scenarios.{name.replace('-', '_')}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name != module_name:
            raise LoadError(
                f"the scenario {name} needs {exc.name}: install the extra bench "
                "(pip install 'postrio[bench]')"
            ) from exc
        raise LoadError(f"the scenario {name} is not part of this installation") from exc
    return Definition(name=name, usual=module.Load(), quick=module.QUICK, build=module.scenario)
