"""The little logic that requests and outcomes have."""

import pytest

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import Recipient, SendOptions


@pytest.mark.parametrize(
    ("bits", "required"),
    [(0, False), (1, False), (2, False), (14, False), (3, True), (5, True), (9, True), (15, True)],
)
def test_smtputf8_is_required_if_requested_and_needed(bits: int, required: bool) -> None:
    assert SendOptions(bits).requires_smtputf8 is required


def test_the_delay_is_the_sum_of_its_parts_and_can_be_given_later() -> None:
    outcome = RecipientOutcome(
        recipient=Recipient(address="a@b"), action=Action.SENT, dsn="2.0.0", reason="ok"
    )
    assert outcome.delays.total == 0.0
    assert outcome.with_delays(Delays(1.0, 2.0, 3.0, 4.0)).delays.total == 10.0
