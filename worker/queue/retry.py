"""When a deferred message is tried again, warned about or given up: arithmetic only.

All times are seconds; `now` and `arrival` are wall-clock seconds since the epoch. A message is due
exactly at its time, not at the next multiple of queue_run_delay as in Postfix: an administrator who
sets minimal_backoff_time to 300 s expects 300 s, and we need no scan of a directory to find it.
"""


def next_attempt(now: float, arrival: float, minimal: float, maximal: float) -> float:
    """When to try again after an attempt that ended `now`.

    The wait is the age of the message, so that it about doubles each time, but at least `minimal`
    (minimal_backoff_time) and at most `maximal` (maximal_backoff_time). A clock that was set back
    gives a negative age: then the wait is the minimal one.
    """
    return now + max(minimal, min(now - arrival, maximal))


def expired(now: float, arrival: float, lifetime: float) -> bool:
    """Whether a message that was just deferred is too old to be kept.

    `lifetime` is maximal_queue_lifetime, or bounce_queue_lifetime for notices; 0: one attempt only.
    """
    return now - arrival >= lifetime


def warning_due(now: float, arrival: float, warning_time: float) -> bool:
    """Whether the sender should be told of the delay (delay_warning_time; 0: never)."""
    return warning_time > 0 and now - arrival >= warning_time


def for_people(seconds: float) -> str:
    """A span in the largest unit that leaves a whole number, as "5 days" or "90 minutes"."""
    whole = max(0, round(seconds))
    count, name = whole, "second"
    for unit, unit_name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if whole >= unit and whole % unit == 0:
            count, name = whole // unit, unit_name
            break
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
