"""The drawings on the page, with the titles and captions that they are registered under, as images in it."""

import base64
from pathlib import Path

from figures import registry
from toytransformer.compositions.io import read_plain

MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}  # in order of preference


def embed(folder: Path) -> list[dict[str, str]]:
    """Each drawing of the folder once, as a data URI, in the order of the registry and then by name."""
    files: dict[str, Path] = {}
    for suffix in MEDIA:
        for path in sorted(folder.glob(f"*{suffix}")):
            files.setdefault(path.stem, path)
    titles = {figure.name: (figure.title, figure.caption) for figure in registry.figures().values()}
    titles |= {stem: (stem.replace("_", " ").replace("-", " "), "") for stem in sorted(files.keys() - titles)}
    drawings = []
    for stem, (title, caption) in titles.items():
        if stem in files:
            data = base64.b64encode(read_plain(files[stem])).decode()
            uri = f"data:{MEDIA[files[stem].suffix]};base64,{data}"
            drawings.append({"name": title, "caption": caption, "uri": uri})
    return drawings
