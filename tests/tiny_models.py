"""Two-layer random language models that take milliseconds, written as the files real ones come in.

`tiny_model` writes a Hugging Face folder (safetensors and a fast tokenizer) of any architecture, `tiny_qwen2`
and `tiny_llama` of the two most used, `tiny_gguf` one GGUF file. The tokenizer is a byte-level BPE, so it
reads any text; it is trained on the lines given, so their words become single tokens if the vocabulary has
room. Same arguments, same files.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from llm_experiments.adapters.weights import AdapterWeights
from toytransformer.adapters import LoRA

LINES = (
    "Who is the spouse of Alice Young? The spouse of Alice Young is Bob Stone.",
    "Where does Bob Stone live? Bob Stone lives in Paris.",
    "Where does the spouse of Alice Young live? The spouse of Alice Young lives in Paris.",
    "Question: Who is the mentor of Bob Stone?\nAnswer: The mentor of Bob Stone is Carol Lane.",
    "Answer the following question step-by-step: First, we need to answer the question: Second, Therefore,",
)

# Bare turns. "system" adds a default system message, as Qwen2.5 does; "think" opens a thought in the prompt,
# as the DeepSeek-R1 distillations do, and drops the thoughts of past answers.
_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_TEMPLATES = {
    "chatml": _TURNS,
    "system": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + _TURNS,
    "think": "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_sep|>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_sep|><think>\n' }}{% endif %}",
}
MLP = ("gate_proj", "up_proj", "down_proj")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<s>", "<pad>")


def tiny_tokenizer(
    lines: Sequence[str] = LINES, *, vocabulary: int = 384, chat: str | None = None, pad: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens (at least 262: bytes and special tokens).

    `chat` is None or a key of `CHAT_TEMPLATES`; with it the end token is <|im_end|>, else <|endoftext|>.
    `pad=False` leaves the pad token undefined, as Llama's files do.
    """
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<s>",
        eos_token="<|endoftext|>" if chat is None else "<|im_end|>",
        pad_token="<pad>" if pad else None,
        padding_side="right",  # what most files say: a loader that wants the left has to set it
        clean_up_tokenization_spaces=False,
    )
    if chat is not None:
        tokenizer.chat_template = CHAT_TEMPLATES[chat]
    return tokenizer


def tiny_qwen2(folder: Path, lines: Sequence[str] = LINES, **options) -> Path:
    """Write a tiny Qwen2 (biases in q, k, v) into `folder`; options as `tiny_model`."""
    return tiny_model(folder, "qwen2", lines, **options)


def tiny_llama(folder: Path, lines: Sequence[str] = LINES, **options) -> Path:
    """Write a tiny Llama into `folder`; options as `tiny_model`."""
    return tiny_model(folder, "llama", lines, **options)


#: What the configuration of an architecture calls by other names, or has besides.
MORE = {
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
    "gpt2": {"n_inner": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mamba": {"state_size": 4},
}


def tiny_model(
    folder: Path | str,
    architecture: str,
    lines: Sequence[str] = LINES,
    *,
    seed: int = 0,
    vocabulary: int = 384,
    chat: str | None = None,
    pad: bool = True,
    hidden: int = 32,
    intermediate: int = 64,
    layers: int = 2,
    scale: float = 0.2,
    tied: bool = False,
) -> Path:
    """Write a tiny model of an `architecture` (config.model_type) that transformers knows into `folder`.

    `scale`: standard deviation of the weights, so large that different prompts get different answers.
    """
    folder = Path(folder)
    tokenizer = tiny_tokenizer(lines, vocabulary=vocabulary, chat=chat, pad=pad)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=scale,
        **MORE.get(architecture, {}),
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero by default, which would hide a forgotten bias
                torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mlp_factors(model, seed: int, *, rank: int = 2, size: float = 0.3) -> dict[str, LoRA]:
    """Random factors for every layer of a model's MLPs, by its name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoRA(
            size * torch.randn(layer.out_features, rank, generator=generator),
            torch.randn(layer.in_features, rank, generator=generator) / rank**0.5,
        )
        for name, layer in sorted(model.named_modules())
        if name.endswith("_proj") and ".mlp." in name
    }


def tiny_gguf(
    file: Path,
    lines: Sequence[str] = LINES,
    *,
    architecture: str = "llama",
    seed: int = 0,
    vocabulary: int = 384,
    chat: str | None = None,
) -> Path:
    """Write the weights of a tiny Llama ("llama") or Qwen2 ("qwen2") as one float32 GGUF file.

    Same seed, same function of the tokens as `tiny_llama` or `tiny_qwen2`.
    """
    import gguf  # only this function needs the package

    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    writers = {"llama": tiny_llama, "qwen2": tiny_qwen2}
    with tempfile.TemporaryDirectory() as source:
        writers[architecture](source, lines, seed=seed, vocabulary=vocabulary, chat=chat)
        weights = load_file(Path(source, "model.safetensors"))
        config = json.loads(Path(source, "config.json").read_text())
        tokenizer = json.loads(Path(source, "tokenizer.json").read_text())
    template = None if chat is None else CHAT_TEMPLATES[chat]

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(vocabulary)

    ids = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.get)
    tokens += [f"<unused{index}>" for index in range(vocabulary - len(tokens))]
    kinds = [3 if token in SPECIAL else 5 if token.startswith("<unused") else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["<|endoftext|>" if chat is None else "<|im_end|>"])
    writer.add_pad_token_id(ids["<pad>"])
    if template is not None:
        writer.add_chat_template(template)

    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[architecture],
        config["num_hidden_layers"],
    )
    for name, weight in weights.items():
        stem, kind = name.rsplit(".", 1)
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            weight = _interleave(weight, heads if stem.endswith("q_proj") else groups)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleave(weight, heads: int):
    """GGUF keeps Llama's rotary pairs side by side: (head, half, pair) -> (head, pair, half)."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def layers_of(model, names=MLP):
    """The layers whose last name is one of these."""
    return {name: layer for name, layer in model.named_modules() if name.rsplit(".", 1)[-1] in names}


def random_library(loaded, count=3, rank=3, seed=0, names=MLP, strength=0.3):
    """Adapters whose updates are about as large as the weights, so that every layer's shift shows."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    def modules():
        return {
            name: LoRA(
                strength * draw(layer.out_features, rank), draw(layer.in_features, rank) / math.sqrt(rank)
            )
            for name, layer in sorted(layers_of(loaded.model, names).items())
        }

    return [AdapterWeights(f"adapter-{index}", modules()) for index in range(count)]
