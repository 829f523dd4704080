"""A validating registry: names to classes, filled by the explicit import lists of the packages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from qunlearn.errors import ConfigError

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(Mapping[str, T], Generic[T]):
    """Maps a registered name to its class or function, sorted by name.

    ``kind`` is the word used in messages, such as "method" or "audit".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add ``item``; a name that is malformed or taken is a ConfigError."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self.kind} name {name!r} is not lower_snake_case.", remedy="Rename it.")
        if name in self._items:
            raise ConfigError(f"{self.kind} {name!r} is registered twice.", remedy="Choose another name.")
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._items, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"unknown {self.kind} {name!r}.", remedy=f"{hint}Known: {', '.join(sorted(self._items))}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
