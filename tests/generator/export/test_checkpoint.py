"""The exported Llama: the same logits, the same samples, and the way back."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generator.conditions import FrameCondition, TextCondition, class_prompt, frames_prompt
from generator.export.checkpoint import export_llama, import_llama
from generator.export.vocabulary import GrammarLogitsProcessor, end_token, read_exported
from generator.gpt import GPT
from generator.grammar import DONE, Grammar, Vocabulary
from generator.inference.engine import sample
from generator.inference.requests import (
    Request,
    SamplingConfig,
    class_requests,
    frame_requests,
    text_requests,
)
from tokenizer.tokens import Tokens

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture
def exported(gpt: GPT, tmp_path: Path) -> Path:
    export_llama(gpt, tmp_path / "llama")
    return tmp_path / "llama"


def load_llama(directory: Path) -> Any:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(directory)
    return model.eval()


def conditions(gpt: GPT, count: int) -> Tokens:
    """Random codes of given frames."""
    assert gpt.frames is not None
    generator = torch.Generator().manual_seed(5)
    size = gpt.vocabulary.codebook_size
    return Tokens.from_blocks(
        [
            [torch.randint(size, (k,), generator=generator) for k in gpt.frames.prefix]
            for _ in range(count)
        ]
    )


def padded(prompts: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts (B, S) padded on the left, and their mask."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def generate(directory: Path, prompts: list[Tensor], **options: object) -> list[Tensor]:
    """What Transformers appends to the prompts, up to the end token."""
    grammar = GrammarLogitsProcessor.load(directory)
    end = end_token(grammar.vocabulary)
    ids, mask = padded(prompts, end)
    out = load_llama(directory).generate(
        ids, attention_mask=mask, logits_processor=[grammar], do_sample=False, **options
    )
    rows = out[:, ids.shape[1] :]
    return [row[: row.tolist().index(end) if end in row else None] for row in rows]


def own(gpt: GPT, requests: list[Request]) -> list[Tensor]:
    """What our engine generates for the requests, given blocks left out."""
    clips = sample(gpt, requests).blocks()
    return [
        gpt.vocabulary.encode_blocks(clip[len(request.given) :])
        for clip, request in zip(clips, requests, strict=True)
    ]


def replayed(vocabulary: Vocabulary, blocks: int, tokens: list[int]) -> list[int]:
    """The kind that is due after each token and before the first, by the engine's grammar."""
    grammar = Grammar(vocabulary, torch.tensor([blocks]))
    kinds = [int(grammar.due()[0])]
    for token in tokens:
        grammar.advance(torch.tensor([token]))
        kinds.append(int(grammar.due()[0]))
    return kinds


def test_the_mask_is_the_engines_grammar(gpt: GPT) -> None:
    vocabulary, frames = gpt.vocabulary, gpt.frames
    assert frames is not None
    processor = GrammarLogitsProcessor(vocabulary, frames)
    requests = class_requests(vocabulary, [0, 2, None], [1, 2, 3], SamplingConfig())
    requests += frame_requests(vocabulary, frames, conditions(gpt, 2), [4, 5], SamplingConfig())
    end = end_token(vocabulary)
    for request, tokens in zip(requests, own(gpt, requests), strict=True):
        wanted = replayed(vocabulary, request.num_blocks, tokens.tolist())
        whole = torch.cat([torch.tensor([end, end]), request.prompt, tokens])  # padded
        for place, kind in enumerate(wanted):
            so_far = whole[None, : 2 + len(request.prompt) + place]
            assert int(processor.due(so_far)) == kind
            allowed = processor.allowed(so_far)[0].nonzero()[:, 0].tolist()
            kinds = {int(vocabulary.kinds[token]) for token in allowed}
            assert allowed == [end] if kind == DONE else kinds == {kind}
        for more in range(3):  # a finished row stays so
            ended = torch.cat([whole, torch.full((more,), end)])[None]
            assert processor.allowed(ended)[0].nonzero()[:, 0].tolist() == [end]


def test_wrong_scores_and_prompts_are_refused(vocabulary: Vocabulary) -> None:
    processor = GrammarLogitsProcessor(vocabulary)
    with pytest.raises(ValueError, match="scores of 5 tokens; the vocabulary has 21"):
        processor(torch.tensor([[vocabulary.null]]), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="not trained to predict frames"):
        processor.due(torch.tensor([[vocabulary.frames, vocabulary.separator]]))


def test_logits_are_equal(gpt: GPT, exported: Path) -> None:
    llama = load_llama(exported)
    generator = torch.Generator().manual_seed(0)
    for length in (1, 9, gpt.max_tokens):
        ids = torch.randint(gpt.vocabulary.size, (length,), generator=generator)
        with torch.no_grad():
            expected = gpt(ids, torch.tensor([0, length], dtype=torch.int32))
            torch.testing.assert_close(llama(ids[None]).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_another_rope_base(make_gpt: Callable[..., GPT], vocabulary: Vocabulary, tmp_path: Path):
    gpt = make_gpt(vocabulary, rope_base=500.0)
    export_llama(gpt, tmp_path / "llama")
    ids = torch.arange(20)
    with torch.no_grad():
        expected = gpt(ids, torch.tensor([0, 20], dtype=torch.int32))
        logits = load_llama(tmp_path / "llama")(ids[None]).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert import_llama(tmp_path / "llama").size == gpt.size


def test_greedy_samples_are_equal(gpt: GPT, exported: Path) -> None:
    """Every class, any class and given frames, in one padded batch."""
    vocabulary, frames = gpt.vocabulary, gpt.frames
    assert frames is not None
    requests = class_requests(vocabulary, [0, 1, 2, None], [0] * 4, GREEDY)
    requests += frame_requests(vocabulary, frames, conditions(gpt, 2), [0, 0], GREEDY)
    found = generate(exported, [request.prompt for request in requests])
    for ours, theirs in zip(own(gpt, requests), found, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_greedy_samples_of_texts_are_equal(
    make_gpt: Callable[..., GPT],
    vocabulary: Vocabulary,
    frames: FrameCondition,
    tmp_path: Path,
) -> None:
    """Texts of several lengths, a class and given frames in one padded batch."""
    text = TextCondition(max_pieces=4, digest="toy")
    data = vocabulary.model_dump() | {"num_text": 9}
    gpt = make_gpt(Vocabulary.model_validate(data), frames, text=text)
    export_llama(gpt, tmp_path / "llama")
    texts = [[1, 2, 3], [8], [4, 4, 0, 7]]
    requests = text_requests(gpt.vocabulary, text, texts, [0] * 3, GREEDY)
    requests += class_requests(gpt.vocabulary, [1], [0], GREEDY)
    requests += frame_requests(gpt.vocabulary, frames, conditions(gpt, 1), [0], GREEDY)
    found = generate(tmp_path / "llama", [request.prompt for request in requests])
    for ours, theirs in zip(own(gpt, requests), found, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_guided_samples_are_equal(gpt: GPT, exported: Path) -> None:
    vocabulary = gpt.vocabulary
    settings = SamplingConfig(temperature=0, guidance=2.5)
    requests = class_requests(vocabulary, [0, 1, 2], [0] * 3, settings)
    found = generate(
        exported,
        [request.prompt for request in requests],
        guidance_scale=2.5,
        negative_prompt_ids=torch.stack([class_prompt(vocabulary, None)] * 3),
    )
    ours = own(gpt, requests)
    assert [row.tolist() for row in found] == [row.tolist() for row in ours]
    plain = own(gpt, class_requests(vocabulary, [0, 1, 2], [0] * 3, GREEDY))
    assert [row.tolist() for row in plain] != [row.tolist() for row in ours]


def test_sampling_by_the_exported_settings_keeps_the_grammar(exported: Path, gpt: GPT) -> None:
    """Nothing but the prompt is given: the rest is in generation_config.json."""
    llama, processor = load_llama(exported), GrammarLogitsProcessor.load(exported)
    settings = llama.generation_config
    assert (settings.do_sample, settings.top_k, settings.top_p) == (True, 0, 1.0)
    torch.manual_seed(0)
    ids = class_prompt(gpt.vocabulary, 1).repeat(16, 1)
    out = llama.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[processor])
    for row in out[:, 1:].tolist():
        end = end_token(gpt.vocabulary)
        clip = torch.tensor(row[: row.index(end) if end in row else None])
        assert len(gpt.vocabulary.decode_blocks(clip)) == gpt.vocabulary.num_blocks


def test_back_again_is_exact(gpt: GPT, tmp_path: Path) -> None:
    gpt.guidance = 1.75
    export_llama(gpt, tmp_path / "llama")
    back = import_llama(tmp_path / "llama")
    assert back.guidance == 1.75
    assert (back.size, back.vocabulary, back.frames) == (gpt.size, gpt.vocabulary, gpt.frames)
    weights = back.state_dict()
    assert weights.keys() == gpt.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in gpt.state_dict().items())


def test_the_vocabulary_says_what_tokens_mean(
    exported: Path, vocabulary: Vocabulary, frames: FrameCondition
) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "vocabulary.json",
    }  # fmt: skip
    table = json.loads((exported / "vocabulary.json").read_text())["tokens"]
    assert table["classes"] == {"cat": 18, "dog": 19, "bee": 20}
    assert table["lengths"] == {"1": 12, "2": 13, "5": 14}
    prompt = frames_prompt(vocabulary, [torch.arange(5), torch.arange(2)])
    assert (prompt[0], prompt[-1]) == (table["frames"], table["separator"])
    assert read_exported(exported).frames == frames


def test_what_is_not_an_export_is_refused(gpt: GPT, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"llama is not empty; name a new folder"):
        export_llama(gpt, exported)
    with pytest.raises(FileNotFoundError, match=r"vocabulary\.json is missing"):
        import_llama(tmp_path)

    other = tmp_path / "other"
    shutil.copytree(exported, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    with pytest.raises(ValueError, match=r"rms_norm_eps is 1e-06; .* a model with 1e-05"):
        import_llama(other)
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": scaled}))
    with pytest.raises(ValueError, match="rope_parameters is"):
        import_llama(other)

    (other / "config.json").write_text(json.dumps(config))
    weights = load_file(other / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        import_llama(other)


@pytest.mark.parametrize("file", ["config.json", "vocabulary.json"])
def test_damaged_exports_are_named(file: str, exported: Path, tmp_path: Path) -> None:
    other = shutil.copytree(exported, tmp_path / "other")
    contents = (b"", b"[]", b"\xff", b"{", b"{}", b'{"model_type": "llama", "hidden_size": "x"}',
                b'{"format": 3}')  # fmt: skip
    for content in contents:
        (other / file).write_bytes(content)
        with pytest.raises(ValueError, match=file.replace(".", r"\.")):
            import_llama(other)


def test_exported_weights_that_are_not_finite(exported: Path, tmp_path: Path) -> None:
    other = shutil.copytree(exported, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight holds values that are not finite"):
        import_llama(other)


def test_without_transformers(gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "evatok\[llama\]"'):
        export_llama(gpt, tmp_path / "llama")
    assert not any(tmp_path.iterdir())
