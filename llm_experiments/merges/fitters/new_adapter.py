"""A new adapter, trained on the examples."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.recipe import Training
from llm_experiments.adapters.training import train
from llm_experiments.merges.fitters import Fit, FittingJob, fitter
from llm_experiments.merges.loss import frozen, mean_loss
from llm_experiments.merges.merging import apply
from llm_experiments.models.layers import covering
from toytransformer.compositions.spec import Merge


@fitter("train")
def by_training(job: FittingJob) -> Fit:
    """One new adapter trained on the examples, none of the library."""
    training = job.training
    if training is None:
        own, rank = job.library[0].modules.keys(), job.library[0].rank
        training = Training(rank=rank, alpha=rank, layers=covering(job.loaded.model, own))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, job.rule.name)
        metrics = train(
            job.loaded,
            job.examples,
            training,
            seed=job.seed,
            adapter_index=len(job.library),
            out=folder,
        )
        del metrics["seconds"]  # details are the same for the same seed
        new = peft_files.read(folder, name=job.rule.name)
    with frozen(job.loaded.model), apply(job.loaded, (new,), Merge("sum")):
        details = {"loss": mean_loss(job.loaded, job.tokens, job.fitting.batch), "training": metrics}
    return Fit((new,), {layer: Merge("sum") for layer in new.modules}, details)
