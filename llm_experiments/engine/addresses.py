"""Names that are hashes: where the results of a step are, and which texts it works on."""

from __future__ import annotations

import hashlib
import re

from llm_experiments.engine.sealing import StoreError, canonical

ADDRESS = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{16}")
REF = re.compile(r"[0-9a-f]{16}")


class Address(str):
    """<kind>-<16 hex digits>: a step, and the folder of its results. Errors: StoreError on other text."""

    __slots__ = ()

    def __new__(cls, text: str) -> Address:
        if not ADDRESS.fullmatch(text):
            raise StoreError(
                f"{text!r} is no address of a step: use <kind>-<16 hex digits>, as Step.address is"
            )
        return super().__new__(cls, text)

    @property
    def kind(self) -> str:
        """The kind of the step."""
        return self.rpartition("-")[0]


class Ref(str):
    """First 16 hex digits of the SHA-256 of a file's bytes, by which a step names the texts it works on.

    Errors: StoreError on other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Ref:
        if not REF.fullmatch(text):
            raise StoreError(f"{text!r} is no reference to an input: use the one that Plan.add_input() gave")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, content: bytes) -> Ref:
        """The name of these bytes."""
        return cls(hashlib.sha256(content).hexdigest()[:16])


def content_key(document: object) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON."""
    return Ref.of(canonical(document).encode())
