"""A nexthop may be a list of destinations: each has a policy and a password of its own."""

import dataclasses

from trio.testing import trio_test

from protocol.request import Protocol
from tests.worker.fake_dns import FakeResolver
from tests.worker.test_network_network import network
from tests.worker.world import make_request
from worker.config.config import Config
from worker.delivery.security import SecurityRules
from worker.sasl.client import SaslClient
from worker.tls.policies import TlsPolicies
from worker.tls.policy import Level


@trio_test
async def test_each_destination_of_a_list_is_looked_up_by_its_own_text() -> None:
    config = Config.from_mapping(
        {
            "smtp_tls_policy_maps": "inline:{ [a.example]=secure, {[b.example]:587 = encrypt} }",
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": "inline:{ {[b.example]:587 = user:word} }",
        }
    )
    rules = SecurityRules(
        policies=TlsPolicies.from_config(config, Protocol.SMTP),
        sasl=SaslClient.from_config(config, Protocol.SMTP),
    )
    hosts = {f"{name}.example": ["192.0.2.1"] for name in "abc"}
    request = dataclasses.replace(
        make_request(), nexthop="[a.example], [b.example]:587, [c.example]"
    )
    net = network(FakeResolver(hosts=hosts))
    found = [
        await rules.security(request, endpoint)
        for choice in net.choices(request.nexthop)
        for endpoint in (await net.find(choice)).endpoints
    ]
    assert [security.policy.level for security in found] == [
        *(Level.SECURE, Level.ENCRYPT, Level.MAY),
    ]
    assert found[0].policy.match == ("a.example", ".a.example")
    assert [security.credentials is not None for security in found] == [False, True, False]
