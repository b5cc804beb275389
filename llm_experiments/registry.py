"""Things by name, each in a module of its own: found by reading the folders they live in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class RegistryError(ValueError):
    """A name that nothing is registered under, or one that is taken; the message says which there are."""


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things of one kind by name, in the order of their modules' names and then of their definition.

    kind: what they are called in messages. packages: whose modules define them, imported at the first look.
    """

    def __init__(self, kind: str, *packages: str):
        self.kind = kind
        self.packages = packages
        self._things: dict[str, Thing] = {}
        self._read = False

    def add(self, name: str, thing: Thing) -> None:
        """Enter a thing. Errors: RegistryError if the name is taken."""
        if name in self._things:
            raise RegistryError(f"there are two {self.kind}s {name!r}: give one another name")
        self._things[name] = thing

    def remove(self, name: str) -> None:
        """Forget a thing, so that its name is free again."""
        del self._things[name]

    def __getitem__(self, name: str) -> Thing:
        self._import()
        try:
            return self._things[name]
        except KeyError:
            have = ", ".join(self._things)
            raise RegistryError(f"there is no {self.kind} {name!r}: choose {have}") from None

    def __contains__(self, name: object) -> bool:
        self._import()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self._import()
        return iter(self._things)

    def __len__(self) -> int:
        self._import()
        return len(self._things)

    def _import(self) -> None:
        """Import every module of the packages, once."""
        if self._read:
            return
        self._read = True
        for name in self.packages:
            package = importlib.import_module(name)
            for module in pkgutil.walk_packages(package.__path__, f"{name}."):
                importlib.import_module(module.name)
