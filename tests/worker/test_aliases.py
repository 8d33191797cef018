"""A server behind a DNS alias keeps the name that we asked for (smtp_cname_overrides_servername).

S035. The DNS client and its server use sockets on loopback, and no clock.
"""

from base64 import b64encode
from dataclasses import replace

import pytest
from trio.testing import trio_test

from protocol.outcome import Action
from protocol.request import Protocol
from tests.worker.main_cf_world import MainCfWorld
from tests.worker.peer import Peer
from tests.worker.test_network_dns import serving, zone
from tests.worker.world import make_request
from worker.config.config import Config

ALIAS = (
    "x.example. 60 IN MX 10 mail.example.",
    "mail.example. 60 IN CNAME host.provider.",
    "host.provider. 60 IN A 192.0.2.1",
)


@pytest.mark.parametrize("overrides", ["no", "yes"])
@trio_test
async def test_s035_log_and_password_go_by_the_name_that_the_mx_record_has(overrides: str) -> None:
    main_cf = {
        "smtp_cname_overrides_servername": overrides,
        "inet_protocols": "ipv4",
        "smtp_tls_security_level": "none",
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": "inline:{mail.example=asked:right, host.provider=alias:wrong}",
        "smtp_sasl_security_options": "noanonymous",
    }
    peer = Peer(extensions=("AUTH PLAIN",))
    world = MainCfWorld(main_cf, {"192.0.2.1": peer}, secured=True)
    async with serving(zone(*ALIAS)) as (_, resolver):
        networks = world.environment.networks
        network = replace(networks[Protocol.SMTP], resolver=resolver)
        world.environment = replace(world.environment, networks={Protocol.SMTP: network})
        request = replace(make_request(), nexthop="x.example")
        await world.play(lambda: world.deliver(request, kept=False))
    (outcome,) = world.results[-1].outcomes
    assert outcome.action is Action.SENT
    assert outcome.relay == "mail.example[192.0.2.1]:25"
    assert "AUTH PLAIN " + b64encode(b"\0asked\0right").decode() in peer.commands


def test_s035_who_wants_the_alias_to_win_is_told_that_it_does_not() -> None:
    config = Config.from_mapping({"smtp_cname_overrides_servername": "yes"})
    assert config.warnings == (
        "configuration: smtp_cname_overrides_servername is deprecated: names from DNS aliases"
        " cannot be trusted; yes is ignored, remove it",
    )
