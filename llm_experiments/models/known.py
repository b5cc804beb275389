"""Models known by name, in one table: how large they are and on which terms they come.

Any other model is loaded just as well, by its hub id, folder or .gguf file; this is what `list` shows and
where the licence of a model is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """parameters: tied weights counted once. license: as the model's card says it. paper: measured there."""

    id: str
    parameters: int | None
    license: str
    paper: bool = False

    @property
    def bf16_bytes(self) -> int | None:
        return None if self.parameters is None else 2 * self.parameters


KNOWN_MODELS = {
    model.id: model
    for model in (
        KnownModel("embedded", None, "apache-2.0"),
        KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, "apache-2.0"),
        KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, "apache-2.0"),
        KnownModel("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, "apache-2.0"),
        KnownModel("Qwen/Qwen2.5-Coder-0.5B-Instruct", 494_032_768, "apache-2.0"),
        KnownModel("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, "apache-2.0"),
        KnownModel("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688, "qwen-research", paper=True),
        KnownModel("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, "apache-2.0", paper=True),
        KnownModel("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664, "apache-2.0", paper=True),
        KnownModel("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512, "mit", paper=True),
        KnownModel("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14_770_033_664, "mit", paper=True),
        # built on a model under the Llama 3.3 licence
        KnownModel("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 70_553_706_496, "mit", paper=True),
    )
}
