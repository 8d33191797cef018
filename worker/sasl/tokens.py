"""Tokens from a command: smtp_sasl_path with smtp_sasl_type = postrio.

The command is called with the user and the server's name as its last arguments, and prints a JSON
object with "access_token" and "expires_in" (seconds), or nothing but the token. A token is kept
until shortly before it expires. One call serves everybody who waits; in the last part of a token's
life one delivery asks for the next one while the others go on with the old.
"""

import json
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.sasl.oauth import TOKEN
from protocol.sasl.secret import Secret

TIME_LIMIT: Final = 30.0  # seconds for one call
OUTPUT_LIMIT: Final = 65_536  # octets
# Octets of a token; RFC 4954 section 4 lets a line of AUTH have 12288 in base64.
TOKEN_LIMIT: Final = 8_192
BARE_LIFETIME: Final = 60.0  # seconds, of a token that does not say
LONGEST: Final = 86_400.0  # seconds; nobody needs to know a token for longer
MARGIN: Final = 30.0  # seconds before its end from which a token is not used any more
RENEW: Final = 0.2  # the part of its life, at the end, in which the next one is asked for
USERS: Final = 1_000  # whose tokens are kept

Call = Callable[[str, str], Awaitable[bytes]]


class TokenError(Exception):
    """No token: why, in one line, without any."""


class _Trip:
    """One call of the command, and who waits for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = ""  # why it came to nothing; empty: it did not, or was cancelled


@dataclass(frozen=True, slots=True)
class _Token:
    secret: Secret
    renew: float  # trio's time
    end: float


class Tokens:
    """The tokens of all users at all servers."""

    def __init__(self, call: Call) -> None:
        """`call(user, host)`: what the command printed; raises TokenError."""
        self._call = call
        self._tokens: dict[tuple[str, str], _Token] = {}
        self._trips: dict[tuple[str, str], _Trip] = {}

    async def token(self, user: str, host: str) -> Secret:
        """A token that is good for some time yet. Raises TokenError."""
        key = (user, host.lower())
        while True:
            trip = self._trips.get(key)
            token = self._tokens.get(key)
            now = trio.current_time()
            if token is not None and now < (token.renew if trip is None else token.end):
                return token.secret
            if trip is None:
                return await self._fetch(key, token)
            await trip.done.wait()
            if trip.error:
                raise TokenError(trip.error)
            # There is one now; or the call was cancelled, and it is somebody else's turn.

    def forget(self, user: str, host: str) -> None:
        """The server refused the token: the next one to log in gets another."""
        self._tokens.pop((user, host.lower()), None)

    async def _fetch(self, key: tuple[str, str], old: _Token | None) -> Secret:
        """Call the command; `old` will do while it is good and the command fails."""
        trip = self._trips[key] = _Trip()
        try:
            return await self._ask(key)
        except TokenError as exc:
            if old is not None and trio.current_time() < old.end:
                return old.secret
            trip.error = str(exc)
            raise
        finally:
            del self._trips[key]
            trip.done.set()

    async def _ask(self, key: tuple[str, str]) -> Secret:
        secret, lifetime = read_output(await self._call(*key))
        now = trio.current_time()
        end = max(lifetime - MARGIN, lifetime / 2)
        if len(self._tokens) >= USERS:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[key] = _Token(secret, now + min(end, lifetime * (1 - RENEW)), now + end)
        return secret


def read_output(output: bytes) -> tuple[Secret, float]:
    """The token and its lifetime (seconds) in what a command printed. Raises TokenError."""
    found = _read(output)
    del output  # a traceback shall not show it
    if isinstance(found, str):
        expected = 'JSON with "access_token" and "expires_in", or a token'
        raise TokenError(f"{found}; expected {expected}")
    return found


def _read(output: bytes) -> tuple[Secret, float] | str:
    """Token and lifetime, or what is wrong."""
    lifetime: object = BARE_LIFETIME
    try:
        text: object = output.decode("ascii").strip()
        if output.lstrip().startswith(b"{"):
            answer = json.loads(output)
            text, lifetime = answer.get("access_token"), answer.get("expires_in", BARE_LIFETIME)
    except (ValueError, RecursionError):
        return "what it printed is neither"
    if not isinstance(text, str) or len(text) > TOKEN_LIMIT or not TOKEN.fullmatch(text):
        return "it printed no token"
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not lifetime > 0:
        return 'its "expires_in" is not a number of seconds'
    return Secret(text), float(min(lifetime, LONGEST))


async def _run(command: Sequence[str], user: str, host: str) -> bytes:
    """What the command prints. Raises TokenError; then nothing of it is left running."""
    try:
        process = await trio.lowlevel.open_process(
            [*command, user, host],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may hold a secret, and belongs to no log
        )
    except OSError as exc:
        raise TokenError(f"{command[0]} cannot be run: {exc.strerror or exc}") from None
    output = bytearray()
    assert process.stdout is not None
    try:
        with trio.move_on_after(TIME_LIMIT) as scope:
            async with process.stdout:
                async for data in process.stdout:
                    output += data
                    if len(output) > OUTPUT_LIMIT:
                        raise TokenError(f"{command[0]} printed more than {OUTPUT_LIMIT} octets")
            await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            with trio.CancelScope(shield=True):  # a killed process ends at once
                await process.wait()
    if scope.cancelled_caught:
        raise TokenError(f"{command[0]} took longer than {TIME_LIMIT:.0f} s")
    if process.returncode:
        raise TokenError(f"{command[0]} ended with status {process.returncode}; run it by hand")
    return bytes(output)


def command_tokens(command: Sequence[str]) -> Tokens:
    """The tokens that `command`, a program with its first arguments, gives out."""

    async def call(user: str, host: str) -> bytes:
        return await _run(command, user, host)

    return Tokens(call)
