"""The array shapes and types that the signatures state are true, in every composition, rule and regime.

Checked in a process of its own (this file, run as a script), where jaxtyping wraps the package on import.
Elsewhere the package runs unwrapped, so that its own errors on bad input are the ones the tests see.
"""

import subprocess
import sys

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception


def check(function):
    """Wrap `function` in checks of its annotations; an int will do for a float."""
    try:
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    except BeartypeDecorHintPep3119Exception:  # a protocol that cannot be checked at run time
        return function


def predict_everything() -> None:
    from toytransformer.compositions import catalogue
    from toytransformer.compositions.spec import Merge
    from toytransformer.merging import RULES
    from toytransformer.prediction import predict
    from toytransformer.regimes import Finite, FullLimit, WidthLimit

    for name in catalogue.names():
        predict(catalogue.build(name, facts=2, known=False), FullLimit())
    for rule in RULES:
        composition = catalogue.build("two-hop", facts=2, known=True, merge=Merge(rule), examples=2)
        for regime in (FullLimit(), WidthLimit(dimension=16), Finite(dimension=16, width=64)):
            predict(composition, regime)


def test_annotations_hold():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from jaxtyping import install_import_hook

    with install_import_hook("toytransformer", "test_annotations.check"):
        predict_everything()
