"""A slot's requests, one after another, each with its result."""

from collections.abc import Callable

from worker.delivery.deliver import Environment, deliver
from worker.delivery.slot import DeliverySlot
from worker.delivery.steady import Requests, run_steadily


async def serve(
    requests: Requests, slot: DeliverySlot, environment: Callable[[], Environment]
) -> None:
    """Deliver until no more requests come. `environment` is asked for each of them.

    Raises what the methods of `requests` raise.
    """
    while await requests.wait():
        begun = await run_steadily(requests, slot, environment)
        try:
            await requests.flush()
        except BaseException:
            if begun is not None:
                begun.content.close()
                await begun.session.aclose()
            raise
        if begun is not None:
            request, content = begun.request, begun.content
        elif requests.upcoming() is not None:
            request, content = requests.take_upcoming()
        else:
            continue
        try:
            result = await deliver(request, content, environment(), slot, begun)
        finally:
            content.close()
        requests.put_result(result)
        await requests.flush()
