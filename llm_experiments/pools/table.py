"""A pool as a table: its bases with their aliases, what can be merged with what, and why the rest cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llm_experiments.adapters.reader import opened
from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.pools.members import Member
from toytransformer.adapters import AdapterError

#: What a base's name ends in where it is the same model in other numbers.
COPIES = re.compile(r"([-_.](unsloth|bnb|4bit|8bit|gptq|awq|int4|int8|nf4|fp8|bf16|fp16))+$")
#: How a model's folder is called in the hub's cache.
CACHED = re.compile(r"models--[^/]+--(?P<name>[^/]+)/snapshots/")
#: What adapters are grouped under whose settings name no base.
NAMELESS = "(not named)"


def plain_name(base: str | None) -> str:
    """A base's name without owner, folder and quantisation, in small letters: what people call it.

    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit" and "/models/Llama-3.1-8B-Instruct" are one base.
    """
    path = (base or "").replace("\\", "/").rstrip("/")
    match = CACHED.search(f"{path}/")
    last = match["name"] if match else path.rpartition("/")[2]
    return COPIES.sub("", last.lower()).removeprefix("meta-") or NAMELESS


def _key(base: str | None) -> str:
    """What the names of one base share: "gemma3-270m" and "gemma-3-270m" are one."""
    return re.sub(r"[-_. ]", "", plain_name(base))


@dataclass(frozen=True)
class BaseGroup:
    """The adapters of one base. aliases: how their settings call it, the commonest first.

    members: those that can be merged with one another; apart: by id why another one of that name cannot.
    """

    name: str
    aliases: tuple[str, ...]
    members: tuple[Member, ...]
    apart: Mapping[str, str]


@dataclass(frozen=True)
class Pool:
    """The rows of an index."""

    rows: tuple[Member, ...]

    @property
    def refused(self) -> tuple[Member, ...]:
        return tuple(row for row in self.rows if row.refused is not None)

    @cached_property
    def bases(self) -> tuple[BaseGroup, ...]:
        """By base, the largest first; digests tell bases of one name apart, unknown ones go with any."""
        named: dict[str, list[Member]] = {}
        for row in self.rows:
            if row.refused is None:
                named.setdefault(_key(row.base), []).append(row)
        groups = [_group(rows) for rows in named.values()]
        return tuple(sorted(groups, key=lambda group: (-len(group.members), group.name)))

    @cached_property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """The ids of adapters with one digest."""
        same: dict[str, list[str]] = {}
        for row in self.rows:
            if row.refused is None:
                same.setdefault(row.digest, []).append(row.id)
        return tuple(tuple(ids) for ids in same.values() if len(ids) > 1)

    def of_base(self, bases: Sequence[str] = ()) -> BaseGroup:
        """The adapters of a base by any of its names, of several that are said to be one; or of the largest.

        Errors: AdapterError for a base that no adapter is for.
        """
        if not self.bases:
            raise AdapterError(f"none of {len(self.rows)} adapters can be merged: {self._commonest()}")
        if not bases:
            return self.bases[0]
        wanted = {_key(base) for base in bases}
        if unknown := [
            base for base in bases if _key(base) not in {_key(group.name) for group in self.bases}
        ]:
            have = ", ".join(group.name for group in self.bases[:10])
            raise AdapterError(f"no adapter of the pool is for the base {unknown[0]!r}; it has {have}")
        return _group([row for row in self.rows if row.refused is None and _key(row.base) in wanted])

    def _commonest(self) -> str:
        reasons = Counter(str(row.refused) for row in self.refused)
        return next((reason for reason, _ in reasons.most_common(1)), "there are none")


def open_members(members: Iterable[Member]) -> list[AdapterWeights]:
    """The adapters of these rows under their ids, their numbers left in the files."""
    return [opened(member.source, name=member.id) for member in members]


def _group(rows: Sequence[Member]) -> BaseGroup:
    aliases = Counter(row.base for row in rows if row.base)
    digests = Counter(row.base_digest for row in rows if row.base_digest)
    kept, apart = [], {}
    digest = digests.most_common(1)[0][0] if digests else None
    common = _commonest_sizes(rows)
    for row in rows:
        if digest and row.base_digest and row.base_digest != digest:
            apart[row.id] = f"its base is {row.base_digest}, of {digests[digest]} others {digest}"
            continue
        unlike = next(
            (star for star, (out, inside, _) in row.modules.items() if common[star] != (out, inside)), None
        )
        if unlike is None:
            kept.append(row)
        else:
            out, inside, _ = row.modules[unlike]
            apart[row.id] = f"{unlike}: (out, in) is {(out, inside)}, of most others {common[unlike]}"
    name = Counter(plain_name(row.base) for row in rows).most_common(1)[0][0]
    return BaseGroup(name, tuple(alias for alias, _ in aliases.most_common()), tuple(kept), apart)


def _commonest_sizes(rows: Sequence[Member]) -> dict[str, tuple[int, int]]:
    counts: dict[str, Counter[tuple[int, int]]] = {}
    for row in rows:
        for star, (out, inside, _) in row.modules.items():
            counts.setdefault(star, Counter())[out, inside] += 1
    return {star: several.most_common(1)[0][0] for star, several in counts.items()}
