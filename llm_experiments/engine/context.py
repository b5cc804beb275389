"""What a step may use while it computes: the model, its inputs, the results of the steps it needs, a log."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.inputs import decoded
from llm_experiments.engine.sealing import StoreError
from llm_experiments.engine.seals import SPEC
from llm_experiments.engine.store import Store

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel


class Context:
    """The model, texts and results that steps compute with.

    load: makes the model; called at the first use of `model`, once, and not again if it failed.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[], LoadedModel] | None = None,
        log: Callable[[str], None] = lambda text: None,
    ):
        self.store = store
        self.log = log
        self._load = load
        self._model: LoadedModel | None = None
        self._failure: Exception | None = None
        self._allowed: Collection[Address] | None = None

    @property
    def model(self) -> LoadedModel:
        """The model of this run. Errors: what loading it raised, at every use."""
        if self._failure is not None:
            raise self._failure
        if self._model is None:
            if self._load is None:
                raise StoreError("this run has no model: give --model")
            try:
                self._model = self._load()
            except Exception as error:
                self._failure = error
                raise
        return self._model

    def results(self, address: Address) -> Path:
        """The folder of a finished step. Errors: StoreError if the step that is computed does not need it."""
        if self._allowed is not None and address not in self._allowed:
            raise StoreError(f"a step reads {address} without needing it: name it in `needs`")
        return self.store.results(address)

    def document(self, address: Address) -> dict[str, Any]:
        """What a finished step was asked to compute: `Step.document`. Errors: as `results`."""
        return json.loads((self.results(address) / SPEC).read_text(encoding="utf-8"))

    def input(self, ref: Ref) -> list[Any]:
        """The lines of an input. Errors: StoreError if it is missing or damaged."""
        return decoded(self.store.input(ref))

    def spec(self, ref: Ref) -> str:
        """The JSON of a composition by its hash. Errors: StoreError if it is missing or damaged."""
        return self.store.spec(ref).decode()

    @contextmanager
    def computing(self, needs: Collection[Address]) -> Iterator[None]:
        """Within the block only results of these steps may be read."""
        self._allowed = needs
        try:
            yield
        finally:
            self._allowed = None
