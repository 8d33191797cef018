"""Tables without a file: inline, static, randmap, fail, environ."""

import random
from collections.abc import Callable, Mapping, Sequence

from worker.config.table import Table, TableConfigError, TableError
from worker.config.values import split_list


class Inline(Table):
    """`inline:{key=text, {key=text with spaces}}`; keys in any case of letters."""

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(spec)
        self._texts: dict[str, str] = {}
        for item in braced_items(name):
            pair = unbraced(item) if item.startswith("{") else item
            key, equals, text = pair.partition("=")
            if not equals or not key.strip():
                raise TableConfigError(f'no "key=text" in "{item}"', "inline:{key=text, ...}")
            self._texts[key.strip().casefold()] = text.strip()
        if not self._texts:
            raise TableConfigError("an inline table without an entry", "inline:{key=text, ...}")

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        return self._texts.get(key.casefold())

    def entries(self) -> Mapping[str, str]:
        """See Table."""
        return self._texts


class Static(Table):
    """`static:text` or `static:{text with spaces}`: the same for every key."""

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(spec)
        self._text = unbraced(name) if name.startswith("{") else name

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        return self._text

    def entries(self) -> Mapping[str, str]:
        """One, for whatever key."""
        return {"*": self._text}


class Random(Table):
    """`randmap:{text, ...}`: one of the texts for every key, each as likely as the others.

    As in Postfix it is asked with whole addresses only: a search by parts would draw lots anew.
    """

    whole_keys_only = True

    def __init__(
        self, spec: str, name: str, choose: Callable[[Sequence[str]], str] = random.choice
    ) -> None:
        """Raises TableConfigError."""
        super().__init__(spec)
        self._choose = choose
        self._texts = braced_items(name)
        if not self._texts:
            raise TableConfigError("randmap without a text", "randmap:{text, ...}")

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        return self._choose(self._texts)


class Fail(Table):
    """`fail:name`: never an answer; for trying out what happens then."""

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        raise TableError(f"{self.spec} lookup of {key} fails as configured")


class Environ(Table):
    """`environ:`: the environment of the process; keys as they are."""

    def __init__(self, spec: str, environ: Mapping[str, str]) -> None:
        super().__init__(spec)
        self._environ = environ

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        return self._environ.get(key)


def braced_items(text: str) -> tuple[str, ...]:
    """The items in `{item, item}`, as they are. Raises TableConfigError."""
    return split_list(unbraced(text))


def unbraced(text: str) -> str:
    """What `{...}` holds, without the white space around. Raises TableConfigError."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:  # the partner of the first brace
            if at == 0:
                break
            if at < len(text) - 1:
                raise TableConfigError(f'text after the braces of "{text}"', "{...}")
            return text[1:-1].strip()
    raise TableConfigError(f'"{text}" is not in braces', "{...}")
