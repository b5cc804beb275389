"""What was read off a language model about a composition's prompts, in one small file that needs no model.

    features = ModelFeatures.read(path)
    features.gram([(prompt, "direct", 48), ..], ["0", "3"])    inner products of the model's own features
    features.readout("mean centred")                           Gram matrix of the names in the unembedding
    features.probabilities(rows)                               what the base itself says, name by name

A *row* is a prompt in one form and wording: ("x1 R1", "direct", 48). Forms: "stored" is the mean of the
features over the wordings that adapters are trained in (no wording), "direct" a question asked at once,
"steps" a one-hop prompt as a chain of thought comes to it. Every row is read where the model decides on the
first token of the answer's name.

Gram matrices are kept by group of layers. Their sum is the kernel of adapters on all these layers at first
order, where a change of any layer's output moves the answer alike.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from toytransformer.compositions.io import read_plain

Array = np.ndarray

#: A prompt, its form and the number of its wording.
Row = tuple[str, str, int | None]
FORMS = ("stored", "direct", "steps")
VERSION = 1


class ModelFeaturesError(ValueError):
    """A file, prompt or layer that is not there; the message says which, what there is and what to do."""


@dataclass(frozen=True, eq=False)
class ModelFeatures:
    """What one base model does with the prompts of one draw of names.

    rows: prompts in their forms and wordings. grams: by group of layers ("0", "0-9"), (row, row), of mean
    diagonal 1. sizes: by group, the root mean square norm of a row's features in the model's own units, all
    layers of the group together. unembedding: by kind ("first", "mean", "first centred", "mean centred"),
    (name, name): cosines of the names' rows in the unembedding, of the first token or the mean of their
    tokens, about zero or about the vocabulary's mean, which moves no probability. logprobs: (row, name),
    log p that the base goes on with the name, in nats; of a "stored" row in the first wording of the test.
    entities: whose names they are, each name once. surface: the names themselves. kinds: "person" or "place"
    by entity where that is known. said: by "prompt/ask/wording" which entity the base answers, None where it
    names none. about: model, digest, dataset, names, share right with the facts in front (told), provenance.
    Errors: ModelFeaturesError on sizes that do not fit together and numbers that are not finite.
    """

    rows: tuple[Row, ...]
    grams: Mapping[str, Float[Array, "row row"]]
    sizes: Mapping[str, float]
    entities: tuple[str, ...]
    surface: tuple[str, ...]
    unembedding: Mapping[str, Float[Array, "name name"]]
    logprobs: Float[Array, "row name"]
    kinds: Mapping[str, str]
    said: Mapping[str, str | None]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        count, names = len(self.rows), len(self.entities)
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            f"Gram matrix of layers {group}": (gram.shape, (count, count))
            for group, gram in self.grams.items()
        }
        shapes |= {
            f"unembedding {kind!r}": (matrix.shape, (names, names))
            for kind, matrix in self.unembedding.items()
        }
        shapes["log-probabilities"] = (self.logprobs.shape, (count, names))
        shapes["names"] = ((len(self.surface),), (names,))
        for what, (found, wanted) in shapes.items():
            if found != wanted:
                raise ModelFeaturesError(f"{what}: shape {found} for {count} rows and {names} names")
        if not self.grams or set(self.sizes) != set(self.grams):
            raise ModelFeaturesError(f"sizes of {sorted(self.sizes)} for layers {sorted(self.grams)}")
        for what, array in (*self.grams.items(), *self.unembedding.items(), ("log p", self.logprobs)):
            if not np.all(np.isfinite(array)):
                raise ModelFeaturesError(f"{what} holds NaN or infinity: read the features anew")
        if twice := [row for row in self.rows if self.rows.count(row) > 1][:1]:
            raise ModelFeaturesError(f"row {twice[0]} is there twice: each form and wording counts once")

    # ---- what it holds ----

    @cached_property
    def _place(self) -> Mapping[Row, int]:
        return {row: number for number, row in enumerate(self.rows)}

    @property
    def layers(self) -> tuple[str, ...]:
        """The groups of layers there are."""
        return tuple(self.grams)

    @property
    def wordings(self) -> tuple[int, ...]:
        """The wordings in which questions are asked."""
        return tuple(dict.fromkeys(w for _, _, w in self.rows if w is not None))

    def __contains__(self, row: Row) -> bool:
        return row in self._place

    def places(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of these rows. Errors: ModelFeaturesError naming the prompt that is not there."""
        numbers = []
        for row in rows:
            if row not in self._place:
                prompt, form, wording = row
                there = [f"{f} {w}" for p, f, w in self.rows if p == prompt]
                have = f"there in the forms {', '.join(there)}" if there else "not among its prompts"
                raise ModelFeaturesError(
                    f"'{prompt}' in form {form!r}, wording {wording}, was not read off {self.name}: it is "
                    f"{have}; read it by `lora-limits features`"
                )
            numbers.append(self._place[row])
        return numbers

    @property
    def name(self) -> str:
        """The model, the dataset and the draw of names in words."""
        about = self.about
        return f"{about.get('model')}, {about.get('dataset')}, names {about.get('names')}"

    def gram(
        self, rows: Sequence[Row], layers: Sequence[str] | None = None, *, alike: bool = False
    ) -> Float[Array, "row row"]:
        """Inner products of these rows, the sum over groups of layers (None: all of them).

        It is divided by its mean diagonal over all rows. alike: every group counts alike, and not by its size
        in the model. Errors: ModelFeaturesError on a row or a layer that is not there.
        """
        places = np.array(self.places(rows), int)
        groups = self.chosen(layers)
        weights = {group: 1.0 if alike else self.sizes[group] ** 2 for group in groups}
        total = sum(weight * self.grams[group][np.ix_(places, places)] for group, weight in weights.items())
        return np.asarray(total, float) / sum(weights.values())

    def chosen(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        """These groups of layers, checked; None: all."""
        groups = self.layers if layers is None else tuple(layers)
        if unknown := [group for group in groups if group not in self.grams]:
            raise ModelFeaturesError(
                f"layers {unknown[0]!r} are not kept of {self.name}: use {', '.join(self.layers)}"
            )
        if not groups:
            raise ModelFeaturesError(f"no layers were given: use some of {', '.join(self.layers)}")
        return groups

    def size(self, layers: Sequence[str] | None = None, *, alike: bool = False) -> float:
        """By what features of these layers are larger in the model than here; 1 where layers count alike.

        A router's raw logit |prototype . phi| is that times the one here.
        """
        groups = self.chosen(layers)
        return 1.0 if alike else math.sqrt(sum(self.sizes[group] ** 2 for group in groups))

    def readout(self, kind: str = "mean centred") -> Float[Array, "name name"]:
        """Cosines of the names in the unembedding. "mean" tells names of one first token apart, "first" is
        what the position that the features are read at decides on. Errors: ModelFeaturesError on others."""
        if kind not in self.unembedding:
            raise ModelFeaturesError(f"unembedding {kind!r}: use one of {', '.join(self.unembedding)}")
        return self.unembedding[kind]

    def probabilities(self, rows: Sequence[Row]) -> Float[Array, "row name"]:
        """p of every name on these rows; their sum is below 1 by what else the base may say."""
        return np.exp(self.logprobs[self.places(rows)].astype(float))

    # ---- the file ----

    def write(self, path: str | os.PathLike) -> None:
        """Keep it as .npz. Gram matrices are kept in half precision about their row means, to a few 1e-5."""
        about = {
            "version": VERSION,
            "rows": self.rows,
            "sizes": dict(self.sizes),
            "entities": self.entities,
            "surface": self.surface,
            "kinds": dict(self.kinds),
            "said": dict(self.said),
            "unembedding": list(self.unembedding),
            "about": dict(self.about),
        }
        arrays: dict[str, Array] = {"about": np.array(json.dumps(about, ensure_ascii=False))}
        for group, gram in self.grams.items():
            means, rest = _packed(gram)
            arrays |= {f"means {group}": means, f"gram {group}": rest}
        for number, matrix in enumerate(self.unembedding.values()):
            arrays[f"unembedding {number}"] = matrix[np.triu_indices(len(matrix))].astype(np.float16)
        arrays["logprobs"] = self.logprobs.astype(np.float16)
        partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.npz")
        try:
            np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike) -> ModelFeatures:
        """What `write` kept. Errors: ModelFeaturesError on any other file, OSError where there is none."""
        try:
            with np.load(io.BytesIO(read_plain(path)), allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["version"] != VERSION:
                    raise ModelFeaturesError(f"{path}: version {about['version']}, this code reads {VERSION}")
                groups = [name.removeprefix("gram ") for name in file.files if name.startswith("gram ")]
                rows = tuple((str(p), str(f), w) for p, f, w in about["rows"])
                return cls(
                    rows=rows,
                    grams={g: _unpacked(file[f"means {g}"], file[f"gram {g}"]) for g in groups},
                    sizes=about["sizes"],
                    entities=tuple(about["entities"]),
                    surface=tuple(about["surface"]),
                    unembedding={
                        kind: _whole(file[f"unembedding {i}"].astype(float), len(about["entities"]))
                        for i, kind in enumerate(about["unembedding"])
                    },
                    logprobs=file["logprobs"].astype(float),
                    kinds=about["kinds"],
                    said=about["said"],
                    about=about["about"],
                )
        except ModelFeaturesError:
            raise
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ModelFeaturesError(
                f"{path} is no file of features ({error}): write it by `lora-limits features`"
            ) from error


def _packed(gram: Array) -> tuple[Array, Array]:
    """Row means in double precision, and the upper triangle of what is left about them in half precision."""
    gram = np.asarray(gram, float)
    means = gram.mean(axis=1)
    rest = gram - means[:, None] - means[None, :] + means.mean()
    return means, rest[np.triu_indices(len(gram))].astype(np.float16)


def _unpacked(means: Array, rest: Array) -> Array:
    return _whole(rest.astype(float), len(means)) + means[:, None] + means[None, :] - means.mean()


def _whole(upper: Array, size: int) -> Array:
    """A symmetric matrix from its upper triangle."""
    if len(upper) != size * (size + 1) // 2:
        raise ModelFeaturesError(f"{len(upper)} numbers for a triangle of {size} rows")
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = upper
    return matrix + np.triu(matrix, 1).T


def rounding(gram: Float[Array, "row row"]) -> float:
    """Largest error of an entry of a Gram matrix that was written and read: half a unit of half precision."""
    rest = gram - gram.mean(axis=1)[:, None] - gram.mean(axis=0)[None, :] + gram.mean()
    unit = float(np.finfo(np.float16).eps) / 2
    return unit * float(np.abs(rest).max()) + 8 * math.ulp(float(np.abs(gram).max()))
