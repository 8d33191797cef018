"""A slot's requests, one after another, each with its result."""

from collections.abc import Callable

from worker.delivery.deliver import Environment, deliver
from worker.delivery.slot import DeliverySlot
from worker.delivery.steady import Requests, run_steadily
from worker.delivery.transaction import Begun


async def serve(
    requests: Requests, slot: DeliverySlot, environment: Callable[[], Environment]
) -> None:
    """Deliver until no more requests come. `environment` is asked for each of them.

    Raises what the methods of `requests` raise.
    """
    begun: Begun | None = None
    while True:
        if begun is None:
            received = await requests.next_request()
            if received is None:
                return
            request, content = received
        else:
            request, content = begun.request, begun.content
        try:
            result = await deliver(request, content, environment(), slot, begun)
        finally:
            content.close()
        requests.put_result(result)
        await requests.flush()
        begun = await run_steadily(requests, slot, environment)
        await requests.flush()
