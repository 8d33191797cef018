"""A slot's requests, one after another, each with its result."""

from collections.abc import Callable
from functools import partial

from worker.delivery.deliver import deliver
from worker.delivery.environment import Environment
from worker.delivery.slot import DeliverySlot
from worker.delivery.steady import Requests, run_steadily


async def serve(
    requests: Requests, slot: DeliverySlot, environment: Callable[[], Environment]
) -> None:
    """Deliver until no more requests come. `environment` is asked for each of them.

    Raises what the methods of `requests` raise.
    """
    while await requests.wait():
        current = environment()
        begun = await run_steadily(requests, slot, current, partial(_is, environment, current))
        try:
            await requests.flush()
        except BaseException:
            if begun is not None:
                begun.content.close()
                await begun.session.aclose()
            raise
        if begun is not None:
            request, content = begun.request, begun.content  # under the environment it began in
        elif requests.upcoming() is not None:
            request, content = requests.take_upcoming()
            current = environment()
        else:
            continue
        try:
            result = await deliver(request, content, current, slot, begun)
        finally:
            content.close()
        requests.put_result(result)
        await requests.flush()


def _is(environment: Callable[[], Environment], current: Environment) -> bool:
    return environment() is current
