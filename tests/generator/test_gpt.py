from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generator.conditions import FrameCondition
from generator.gpt import GPT, GPTConfig
from generator.grammar import Vocabulary
from tests.generator.sequences import packed
from training.layers import checkpoint_activations


def random_sequences(gpt: GPT, lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(gpt.vocabulary.size, (n,), generator=generator) for n in lengths]


LENGTHS = [6, 1, 13, 13, 4]


def test_packed_equals_one_by_one_with_gradients(gpt: GPT) -> None:
    sequences = random_sequences(gpt, LENGTHS)
    weights = [torch.randn(n, gpt.vocabulary.size) for n in LENGTHS]
    together = gpt(torch.cat(sequences), packed(LENGTHS))
    parameters = list(gpt.parameters())
    expected = torch.autograd.grad((together * torch.cat(weights)).sum(), parameters)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for ids, weight, part in zip(sequences, weights, together.split(LENGTHS), strict=True):
        alone = gpt(ids, packed([len(ids)]))
        torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-5)
        for sum_, part in zip(
            total, torch.autograd.grad((alone * weight).sum(), parameters), strict=True
        ):
            sum_ += part
    for ours, theirs in zip(expected, total, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_order_in_the_batch_does_not_matter(gpt: GPT) -> None:
    sequences = random_sequences(gpt, LENGTHS)
    forward = gpt(torch.cat(sequences), packed(LENGTHS)).split(LENGTHS)
    backward = gpt(torch.cat(sequences[::-1]), packed(LENGTHS[::-1])).split(LENGTHS[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_later_tokens_do_not_change_earlier_logits(gpt: GPT) -> None:
    (ids,) = random_sequences(gpt, [20])
    changed = ids.clone()
    changed[12:] = (changed[12:] + 1) % gpt.vocabulary.size
    one, other = gpt(ids, packed([20])), gpt(changed, packed([20]))
    torch.testing.assert_close(one[:12], other[:12], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(one[12:], other[12:])


def test_logits_at_chosen_places(gpt: GPT) -> None:
    (ids,) = random_sequences(gpt, [9])
    places = torch.tensor([7, 0])
    everywhere = gpt(ids, packed([9]))
    torch.testing.assert_close(gpt(ids, packed([9]), places), everywhere[places])


def test_starts_with_every_token_equally_likely(vocabulary: Vocabulary) -> None:
    gpt = GPT(GPTConfig(width=64, layers=1, heads=2, hidden=96), vocabulary)
    assert gpt(torch.tensor([1, 2]), packed([2])).count_nonzero() == 0
    for name, parameter in gpt.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        elif name != "head.weight":
            assert 0.017 < parameter.std().item() < 0.023, name
    assert not any(name.endswith("bias") for name, _ in gpt.named_parameters())


@pytest.mark.parametrize(
    ("size", "millions"),
    # 97.6, 325.2 and 630.7 M with a head for codes alone; a Llama's head has every token
    [((768, 12, 12, 2048), 97.7), ((1024, 24, 16, 2816), 325.3), ((1280, 30, 20, 3584), 630.8)],
)
def test_paper_sizes(size: tuple[int, int, int, int], millions: float) -> None:
    vocabulary = Vocabulary(
        codebook_size=8192,
        levels=(32, 64, 128, 256, 512),
        num_blocks=4,
        class_names=tuple(str(i) for i in range(101)),
    )
    width, layers, heads, hidden = size
    with torch.device("meta"):
        gpt = GPT(GPTConfig(width=width, layers=layers, heads=heads, hidden=hidden), vocabulary)
    assert sum(p.numel() for p in gpt.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert gpt.max_tokens == 1 + 4 * 513


def test_equals_llama_of_transformers(gpt: GPT) -> None:
    import transformers

    size = gpt.size
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=gpt.vocabulary.size,
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=gpt.max_tokens,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    ).eval()
    ours = gpt.state_dict()
    names = {
        "model.embed_tokens": "embedding",
        "model.norm": "norm",
        "lm_head": "head",
    }
    for i in range(size.layers):
        theirs = f"model.layers.{i}"
        names |= {
            f"{theirs}.input_layernorm": f"layers.{i}.norm_attention",
            f"{theirs}.post_attention_layernorm": f"layers.{i}.norm_mlp",
            f"{theirs}.self_attn.o_proj": f"layers.{i}.out",
        }
        names |= {f"{theirs}.self_attn.{x}_proj": f"layers.{i}.{x}" for x in "qkv"}
        names |= {f"{theirs}.mlp.{x}_proj": f"layers.{i}.{x}" for x in ("gate", "up", "down")}
    llama.load_state_dict({f"{a}.weight": ours[f"{b}.weight"] for a, b in names.items()})
    for ids in random_sequences(gpt, [1, 20]):
        with torch.no_grad():
            expected = llama(ids[None]).logits[0]
            torch.testing.assert_close(gpt(ids, packed([len(ids)])), expected, atol=1e-4, rtol=1e-4)


def test_saved_model_is_the_same(gpt: GPT, tmp_path: Path) -> None:
    gpt.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.vocabulary == gpt.vocabulary
    assert loaded.frames == gpt.frames
    assert loaded.size == gpt.size
    (ids,) = random_sequences(gpt, [9])
    assert torch.equal(loaded(ids, packed([9])), gpt(ids, packed([9])))


def test_saved_model_without_frames(
    make_gpt: Callable[..., GPT], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    make_gpt(vocabulary).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).frames is None


def test_errors_name_the_rule(gpt: GPT, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="the model holds"):
        gpt(torch.zeros(99, dtype=torch.int64), packed([99]))
    with pytest.raises(ValueError, match="width 30"):
        GPT(GPTConfig(width=30, layers=1, heads=4, hidden=8), vocabulary)
    with pytest.raises(ValueError, match="not levels"):
        GPT(
            GPTConfig(width=32, layers=1, heads=4, hidden=8),
            vocabulary,
            FrameCondition(prefix=(5, 3)),
        )


def test_recomputed_layers_give_the_same_gradients(gpt: GPT) -> None:
    """`train.checkpoint_activations`, with dropout on: the same bits."""
    ids = torch.randint(gpt.vocabulary.size, (20,), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 12, 20], dtype=torch.int32)
    gradients = []
    for around in (nullcontext(), checkpoint_activations(gpt)):
        gpt.train().zero_grad()
        torch.manual_seed(3)
        with around:
            gpt(ids, bounds).square().sum().backward()
        gradients.append([p.grad.clone() for p in gpt.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(gpt.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
