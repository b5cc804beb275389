"""The steps of one training through `transformers.Trainer`, quiet and leaving nothing behind."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llm_experiments.adapters import batches
from llm_experiments.adapters.jobs import TrainingJob
from llm_experiments.adapters.recipe import Training

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel


def run(
    peft_model: nn.Module,
    loaded: LoadedModel,
    job: TrainingJob,
    training: Training,
    trained: Sequence[Tensor],
    loss_of: Callable[[batches.TrainingBatch], Tensor],
    seen: Callable[[int, float], None],
) -> None:
    """Update the parameters `trained` once for each batch of the job; `seen(step, loss)` behind each.

    Trainer's own seed plays no part: the order of the data and the dropout masks are the job's.
    """
    latest: list[Tensor] = []

    def kept_loss(batch: batches.TrainingBatch) -> Tensor:
        loss = loss_of(batch)
        latest.append(loss.detach())
        return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=job.steps,
            max_grad_norm=0.0,  # done by _Watch
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=loaded.device.type == "cpu",
        )
        trainer = _Trainer(
            kept_loss,
            model=peft_model,
            args=arguments,
            train_dataset=_Steps(job, loaded.tokenizer.pad_token_id),
            optimizers=optimizer_of(trained, training, job.steps),
            callbacks=[_Watch(trained, training.clip, latest, seen)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        gc.freeze()  # Trainer collects garbage first, which takes seconds among a large program's objects
        try:
            trainer.train()
        finally:
            gc.unfreeze()


def optimizer_of(
    parameters: Sequence[Tensor], training: Training, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and the schedule of its learning rate."""
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: training.rate(step, steps))


class _Trainer(transformers.Trainer):
    """Trainer over batches made in advance, with a loss of our own."""

    def __init__(self, loss_of: Callable[[batches.TrainingBatch], Tensor], **options: Any):
        super().__init__(**options)
        self.loss_of = loss_of

    def get_train_dataloader(self) -> DataLoader:
        assert isinstance(self.train_dataset, _Steps)
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        model.eval()  # of the base: some architectures have dropout of their own, drawn by Trainer's seed
        return self.loss_of(inputs["batch"])

    def floating_point_ops(self, inputs: dict[str, object]) -> int:
        return 0


class _Steps(torch.utils.data.Dataset):
    def __init__(self, job: TrainingJob, padding: int):
        self.job, self.padding = job, padding

    def __len__(self) -> int:
        return self.job.steps

    def __getitem__(self, step: int) -> dict[str, batches.TrainingBatch]:
        return {"batch": batches.collated([self.job.step(step)], self.padding)}


class _Watch(transformers.TrainerCallback):
    """Clips the gradient before each update and reports the loss behind it."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        clip: float,
        latest: list[Tensor],
        seen: Callable[[int, float], None],
    ):
        self.parameters, self.clip, self.latest, self.seen = parameters, clip, latest, seen

    def on_pre_optimizer_step(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: object,
    ) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: object,
    ) -> None:
        self.seen(state.global_step - 1, self.latest.pop().item())
