"""The GPT as a `LlamaForCausalLM` checkpoint of Transformers, and back.

The network is a Llama, so nothing is computed: tensors get other names. Beside config.json and
model.safetensors lie a generation config that samples as our engine does, and vocabulary.json
(`generator.export.vocabulary`), which says what the tokens mean and carries the grammar.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from evaluation.encoders.transformer import load_pretrained, quiet, transformers
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import atomic_folder
from evatok.core.loading.records import read_object
from generator.conditions import longest_sequence
from generator.export.vocabulary import (
    VOCABULARY_FILE,
    Exported,
    end_token,
    read_exported,
    token_table,
)
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary


def export_llama(gpt: GPT, directory: str | Path) -> None:
    """Write a model as Transformers reads it, whole or not at all.

    Args:
        gpt: is left as it is; the checkpoint keeps its dtype.
        directory: new or empty.

    Raises:
        EvatokError: the folder holds something.
        ImportError: transformers is not installed.
    """
    directory = Path(directory)
    check_empty(directory)
    package = _transformers()
    vocabulary = gpt.vocabulary
    config = package.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype=gpt.head.weight.dtype,
        # The end token is one more than a clip needs.
        max_position_embeddings=gpt.max_tokens + 1,
        pad_token_id=end_token(vocabulary),
        bos_token_id=None,
        eos_token_id=end_token(vocabulary),
        **_shape(gpt.size, vocabulary),
    )
    ours, names = gpt.state_dict(), _names(gpt.size.layers)
    with quiet():
        with torch.device("meta"):
            llama = package.LlamaForCausalLM(config)
        llama.load_state_dict({theirs: ours[name] for name, theirs in names.items()}, assign=True)
        llama.generation_config = package.GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=vocabulary.longest(vocabulary.num_blocks) + 1,  # and the end token
            pad_token_id=end_token(vocabulary),
            eos_token_id=end_token(vocabulary),
        )
    exported = Exported(
        size=gpt.size,
        vocabulary=vocabulary,
        frames=gpt.frames,
        text=gpt.text,
        guidance=gpt.guidance,
        tokens=token_table(vocabulary),
    )
    with atomic_folder(directory) as partial:
        with quiet():
            llama.save_pretrained(partial)
        text = exported.model_dump_json(indent=1)
        (partial / VOCABULARY_FILE).write_text(text, encoding="utf-8")


def import_llama(directory: str | Path) -> GPT:
    """The model in a folder that `export_llama` wrote, perhaps trained further elsewhere.

    Returns:
        In eval mode, float32.

    Raises:
        FileNotFoundError: no export.
        EvatokError: its config.json describes another network, or weights are missing.
        ImportError: transformers is not installed.
    """
    directory = Path(directory)
    exported, package = read_exported(directory), _transformers()
    if not (directory / "config.json").is_file():
        raise MissingFileError(f"{directory / 'config.json'} is missing: no Transformers model")
    read_object(directory / "config.json", "export the model anew")
    try:
        config = package.AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError,
            StrictDataclassError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise EvatokError(
            f"{directory / 'config.json'}: no Transformers model ({reason})"
        ) from None
    if config.model_type != "llama":
        raise EvatokError(f"{directory / 'config.json'}: a {config.model_type!r}, not a llama")
    wanted = _shape(exported.size, exported.vocabulary)
    for key, value in wanted.items():
        found: Any = getattr(config, key, None)
        if key == "rope_parameters":
            found = {k: v for k, v in (found or {}).items() if k in value or k == "factor"}
        if found != value:
            raise EvatokError(
                f"{directory / 'config.json'}: {key} is {found!r}; "
                f"{VOCABULARY_FILE} describes a model with {value!r}"
            )
    longest = longest_sequence(exported.vocabulary, exported.frames, exported.text)
    if config.max_position_embeddings < longest:
        raise EvatokError(
            f"{directory / 'config.json'}: max_position_embeddings is "
            f"{config.max_position_embeddings}; the longest clip takes {longest} tokens"
        )
    theirs = load_pretrained("LlamaForCausalLM", directory).state_dict()
    gpt = GPT(exported.size, exported.vocabulary, exported.frames, exported.text, exported.guidance)
    names = _names(exported.size.layers)
    gpt.load_state_dict({name: theirs[other] for name, other in names.items()})
    return gpt.eval()


def check_empty(directory: Path) -> None:
    """Refuse a folder that holds something, or a file."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise EvatokError(f"{directory} is not empty; name a new folder")


def _transformers() -> Any:
    return transformers("Llama checkpoints", "llama")


def _shape(size: GPTConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Everything in a Llama's config on which its logits depend."""
    return {
        "vocab_size": vocabulary.size,
        "hidden_size": size.width,
        "intermediate_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": size.width // size.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_base},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _names(layers: int) -> dict[str, str]:
    """Our names of the tensors → Transformers'."""
    names = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        names |= {
            f"{ours}.norm_attention": f"{theirs}.input_layernorm",
            f"{ours}.norm_mlp": f"{theirs}.post_attention_layernorm",
            f"{ours}.out": f"{theirs}.self_attn.o_proj",
        }
        names |= {f"{ours}.{x}": f"{theirs}.self_attn.{x}_proj" for x in "qkv"}
        names |= {f"{ours}.{x}": f"{theirs}.mlp.{x}_proj" for x in ("gate", "up", "down")}
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
