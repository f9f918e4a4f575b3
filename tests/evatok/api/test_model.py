"""The Python API on toy parts: videos and clips to tokens and back, samples, predictions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import evatok
from evatok.generate.decoding import decode_file
from evatok.generate.token_file import EncodeSettings, encode_file
from generator.gpt import GPT
from generator.inference.optimize import prepare_for_inference
from tokenizer.evt.format import EvtError
from video.reading import iter_timed, read_frames
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]


@pytest.fixture(scope="module")
def model(toy_dir: Path) -> evatok.Model:
    return evatok.load(toy_dir, device="cpu")


@pytest.fixture
def video(square: Square) -> evatok.Video:
    return evatok.Video(torch.from_numpy(square(37, 38, 46, 0)), 24)


def test_names_are_there_and_import_is_light(root: Path) -> None:
    for name in evatok.__all__:
        assert getattr(evatok, name) is not None and name in dir(evatok)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = evatok.nothing  # type: ignore[attr-defined]
    code = "import evatok, sys; print(sorted({'torch', 'numpy', 'av'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(root)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_video_through_tokens_keeps_size_length_and_times(
    model: evatok.Model, video: evatok.Video
) -> None:
    tokens = model.encode(video)
    again = model.decode(tokens)
    assert tokens.num_frames == len(again) == 37 and again.frames.shape == video.frames.shape
    assert again.times == video.times and again.rate == pytest.approx(24)
    assert len(tokens) == len(tokens.ids) == sum(int(part.sum()) for part in tokens.assignment)


def test_memory_and_file_are_the_same_tokens(
    model: evatok.Model, square: Square, tmp_path: Path
) -> None:
    """`encode` and `evatok encode` share every step; so do the decoders."""
    write_video(tmp_path / "in.mp4", square(37, 38, 46, 0), 24)
    encode_file(
        model, tmp_path / "in.mp4", tmp_path / "a.evt", settings=EncodeSettings(sound=False)
    )
    tokens, filed = model.encode(evatok.read_video(tmp_path / "in.mp4")), evatok.open(
        tmp_path / "a.evt"
    )  # fmt: skip
    assert np.array_equal(tokens.ids, filed.ids)
    for mine, theirs in zip(tokens.assignment, filed.assignment, strict=True):
        assert np.array_equal(mine, theirs)
    tokens.save(tmp_path / "b.evt")
    tokens.save(tmp_path / "b.evt")  # over itself
    decode_file(model, tmp_path / "b.evt", tmp_path / "b.mkv")
    decode_file(model, tmp_path / "a.evt", tmp_path / "a.mkv")
    a, b = (list(iter_timed(tmp_path / name)) for name in ("a.mkv", "b.mkv"))
    assert [time for time, _ in a] == [time for time, _ in b]
    assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True))
    assert torch.equal(
        model.decode(tokens).frames, model.decode(evatok.open(tmp_path / "b.evt")).frames
    )
    assert sorted(path.name for path in tmp_path.iterdir() if ".evt" in path.name) == [
        "a.evt",
        "b.evt",
    ]


def test_a_file_that_was_broken_off_stays_incomplete(
    model: evatok.Model, square: Square, tmp_path: Path
) -> None:
    """Opened and saved again, it is what it was."""

    def interrupt(_file: str, _done: int, _total: int | None) -> None:
        raise KeyboardInterrupt

    write_video(tmp_path / "in.mp4", square(80, 38, 46, 0), 24)
    settings = EncodeSettings(sound=False, clips_per_chunk=1)
    path = tmp_path / "a.evt"
    with pytest.raises(KeyboardInterrupt):
        encode_file(model, tmp_path / "in.mp4", path, settings=settings, progress=interrupt)
    tokens = evatok.open(path)
    assert tokens.num_frames == 16 and not tokens.complete
    tokens.save(tmp_path / "b.evt")
    assert (tmp_path / "b.evt").read_bytes() == path.read_bytes()
    encode_file(model, tmp_path / "in.mp4", path, settings=settings)
    assert evatok.open(path).complete


def test_assignments(model: evatok.Model, video: evatok.Video) -> None:
    assert {int(n) for part in model.encode(video, assignment="uniform:2").assignment
            for n in part.flatten()} == {2}  # fmt: skip
    fixed = model.encode(video, assignment=(4, 2, 1, 1)).assignment[0]
    assert (fixed == np.array([4, 2, 1, 1])).all()
    assert max(int(p.sum(1).max()) for p in model.encode(video, max_tokens=5).assignment) <= 5
    with pytest.raises(evatok.EvatokError, match="leave out the assignment"):
        model.encode(video, quality=1.0, assignment="uniform:2")
    with pytest.raises(evatok.EvatokError, match=r"quality 3 is outside \[0, 2\]"):
        model.encode(video, quality=3)
    with pytest.raises(ValueError, match="w_q"):
        model.encode(video, quality=1.0)  # these parts have no router with w_q


def clips(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_clips_to_tokens_and_back(model: evatok.Model) -> None:
    tokens = model.encode(clips())
    assert isinstance(tokens, evatok.Tokens) and tokens.assignment.shape == (2, 4)
    again = model.decode(tokens)
    assert again.shape == clips().shape and float(again.abs().max()) <= 1
    chosen = torch.tensor([[1, 2, 4, 4], [4, 4, 1, 1]])
    assert torch.equal(model.encode(clips(), assignment=chosen).assignment, chosen)
    with pytest.raises(evatok.EvatokError, match=r"no block has 3 tokens: give \(1, 2, 4\)"):
        model.encode(clips(), assignment=chosen.clamp(max=3))
    with pytest.raises(evatok.EvatokError, match=r"give \(2, 4\) int64"):
        model.encode(clips(), assignment=chosen[:1])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (clips().add(1).mul(127.5), r"reach from .* to 25\d.*clips / 127.5 - 1"),
        (clips().to(torch.uint8), r"uint8, not floats.*clips / 127.5 - 1"),
        (clips().permute(0, 2, 3, 4, 1), r"permute\(0, 4, 1, 2, 3\)"),
        (clips().transpose(1, 2), r"transpose\(1, 2\)"),
        (clips()[0], r"clips\[None\]"),
        (clips()[:, :, :8], r"not \(B, 3, 16, 32, 32\): cut and resize them"),
        (clips()[..., :16], "may have any size"),
        (clips() * float("nan"), "hold NaN"),
        (torch.zeros(7, 9, 9, 3, dtype=torch.uint8), r"evatok.Video\(frames, rate\)"),
        (np.zeros((7, 9, 9, 3), np.uint8), r"a ndarray cannot be encoded"),
    ],
)
def test_wrong_clips_are_refused_with_a_remedy(
    model: evatok.Model, given: torch.Tensor, told: str
) -> None:
    with pytest.raises(evatok.EvatokError, match=told):
        model.encode(given)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"assignment": ""}, "assignment '': choose"),
        ({"assignment": [4.5, 2, 1, 1]}, "a token count is 4.5: give a whole number"),
        ({"assignment": [True] * 4}, "a token count is True"),
        ({"assignment": 4}, "assignment is 4: give a rule"),
        ({"quality": True}, r"quality is True: give a number in \[0, 2\]"),
        ({"quality": "1"}, "quality is '1'"),
        ({"quality": 1, "assignment": np.array([4, 2, 1, 1])}, "leave out the assignment"),
        ({"max_tokens": 17.9}, "max_tokens is 17.9: give a whole number"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"refine": 1.5}, "refine is 1.5: give a whole number"),
    ],
)
def test_options_of_encode_are_taken_as_they_are_or_refused(
    model: evatok.Model, video: evatok.Video, options: dict[str, Any], told: str
) -> None:
    for given in (video, clips()):
        with pytest.raises(evatok.EvatokError, match=told):
            model.encode(given, **options)


def test_whole_numbers_of_every_kind(model: evatok.Model) -> None:
    wanted = torch.tensor([[4, 2, 1, 1]] * 2)
    levels: Any
    for levels in (wanted[0], wanted[0].numpy(), wanted[0].double().numpy()):
        found = model.encode(clips(), assignment=list(levels)).assignment
        assert torch.equal(found, wanted)
    with pytest.raises(evatok.EvatokError, match=r"torch\.bool: give"):
        model.encode(clips(), assignment=torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("one.evt", r"a str cannot be decoded: .*evatok.open\(path\)"),
        (torch.zeros(3), "a Tensor cannot be decoded"),
        (None, "a NoneType cannot be decoded"),
        (evatok.Tokens(torch.zeros(0).long(), torch.zeros(0, 4).long()), "no tokens"),
    ],
)
def test_only_tokens_are_decoded(model: evatok.Model, given: Any, told: str) -> None:
    with pytest.raises(evatok.EvatokError, match=told):
        model.decode(given)


def test_only_ids_of_the_codebook_are_decoded(model: evatok.Model) -> None:
    assignment = torch.tensor([[1, 1, 1, 1]])
    last = model.final.config.codebook_size - 1
    assert model.decode(evatok.Tokens(torch.tensor([0, 0, 0, last]), assignment)).shape[0] == 1
    for wrong in (-1, last + 1):
        with pytest.raises(evatok.EvatokError, match=f"an id {wrong}, .* has 0 to {last}"):
            model.decode(evatok.Tokens(torch.tensor([0, 0, 0, wrong]), assignment))


def test_tokens_collate_in_a_loader(model: evatok.Model) -> None:
    rows = [model.encode(clips(4)[place : place + 1]) for place in range(4)]
    batches = list(DataLoader(rows, batch_size=3, collate_fn=evatok.Tokens.cat))  # type: ignore[arg-type]
    assert [len(batch.assignment) for batch in batches] == [3, 1]
    assert torch.equal(batches[0].ids, torch.cat([row.ids for row in rows[:3]]))


def test_samples_do_not_depend_on_their_neighbours(model: evatok.Model) -> None:
    three = model.sample(["left", "Right", "Left"], guidance=2.0, seed=1)
    assert [len(video) for video in three] == [16] * 3
    (alone,) = model.sample(["Left"], guidance=2.0, seed=1)
    assert torch.equal(three[0].frames, alone.frames)
    assert not torch.equal(three[0].frames, three[2].frames)
    with pytest.raises(ValueError, match="no class Up"):
        model.sample(["Up"])
    with pytest.raises(evatok.EvatokError, match="give a list"):
        model.sample("Left")
    with pytest.raises(evatok.EvatokError, match="classes or texts"):
        model.sample()
    for names in (("left", "Left"), np.array(["left", "Left"])):
        taken = model.sample(names, guidance=2.0, seed=1)  # type: ignore[arg-type]
        assert torch.equal(taken[0].frames, alone.frames)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": -1}, "seed is -1: give a whole number ≥ 0"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0, not -1"),
        ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 0}, "top_p: "),
        ({"max_tokens": 0}, "max_tokens: "),
    ],
)
def test_numbers_out_of_range_are_one_line(
    model: evatok.Model, video: evatok.Video, options: dict[str, Any], told: str
) -> None:
    for call in (lambda: model.sample(["left"], **options),
                 lambda: model.predict(video[:5], **options)):  # fmt: skip
        with pytest.raises(evatok.EvatokError, match=told) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(evatok.EvatokError, match="guidance: "):
        model.sample(["left"], guidance=-1)
    with pytest.raises(evatok.EvatokError, match="classes hold 3"):
        model.sample(["left", 3])  # type: ignore[list-item]


def test_texts(text_dir: Path) -> None:
    videos = evatok.load(text_dir, "cpu").sample(texts=["a dark clip of left"] * 2)
    assert len(videos) == 2 and not torch.equal(videos[0].frames, videos[1].frames)


def test_prediction_goes_on(model: evatok.Model, video: evatok.Video) -> None:
    rest = model.predict(video[:5], frames=30)
    assert rest.frames.shape == (30, 32, 32, 3) and rest.rate == 24
    assert torch.equal(rest.frames[:16], model.predict(video[:5]).frames)
    with pytest.raises(evatok.EvatokError, match=r"has 37: give video\[:5\]"):
        model.predict(video)
    for wrong in ("clip.mp4", video.frames[:5]):
        with pytest.raises(evatok.EvatokError, match=r"cannot be continued: .*read_video\(path\)"):
            model.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(evatok.EvatokError, match=r"frames is 16\.5"):
        model.predict(video[:5], frames=16.5)  # type: ignore[arg-type]


def test_other_models_tokens_are_refused(model: evatok.Model, video: evatok.Video) -> None:
    with pytest.raises(EvtError, match="encoded with"):
        evatok.load("nano", "cpu").decode(model.encode(video))


def test_video_slices_saves_and_reads(video: evatok.Video, tmp_path: Path) -> None:
    part = video[8:20]
    assert len(part) == 12 and part.times[0] == Fraction(8, 24)
    assert video[::2].rate == 12 and len(video[::2]) == 19
    part.save(tmp_path / "a.mp4")
    again = evatok.read_video(tmp_path / "a.mp4", start=2, count=5)
    assert torch.equal(again.frames, read_frames(tmp_path / "a.mp4", 2, 5))
    assert again.rate == pytest.approx(24)
    uneven = evatok.Video(part.frames[:3], 10, (Fraction(0), Fraction(1, 10), Fraction(3, 10)))
    uneven.save(tmp_path / "u.mp4")
    assert evatok.read_video(tmp_path / "u.mp4").times == uneven.times
    for wrong, told in (
        (part.frames.permute(0, 3, 1, 2), r"permute\(0, 2, 3, 1\)"),
        (part.frames[0], r"frames\[None\]"),
        (part.frames.float(), r"float32, not uint8 in \[0, 255\]"),
    ):
        with pytest.raises(evatok.EvatokError, match=told):
            evatok.Video(wrong)
    with pytest.raises(evatok.EvatokError, match="no frames"):
        _ = video[50:]
    with pytest.raises(evatok.EvatokError, match="give a slice"):
        _ = video[3]  # type: ignore[index]
    with pytest.raises(evatok.EvatokError, match="do not ascend"):
        evatok.Video(part.frames[:2], 10, (Fraction(1), Fraction(1)))


def test_arrays_in_any_order_and_lists_are_videos(square: Square) -> None:
    frames = square(5, 8, 10, 0)
    still = frames.copy()
    still.flags.writeable = False
    for array in (
        frames[..., ::-1],  # BGR, as OpenCV reads
        frames[::-1],
        frames[:1][::-1],
        frames[:, :, ::-1],
        np.asfortranarray(frames),
        still,
    ):
        made = evatok.Video(array)  # type: ignore[arg-type]
        assert np.array_equal(made.frames.numpy(), array)
    for listed in (list(frames), tuple(torch.from_numpy(frames)), list(frames[..., ::-1])):
        made = evatok.Video(listed)  # type: ignore[arg-type]
        assert np.array_equal(made.frames.numpy(), np.stack([np.asarray(one) for one in listed]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((None,), r"a NoneType is no video: .*read_video\(path\)"),
        (("clip.mp4",), "a str is no video"),
        (([],), "a list is no video"),
        (([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],), "several sizes"),
        ((np.zeros((2, 8, 8, 3), object),), "frames are object, not uint8"),
        ((torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 1e-320), "above 0"),
        ((torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "25"), "rate is '25'"),
        ((torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 25, (0, float("nan"))), "times: .*NaN"),
        ((torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 25, (0, float("inf"))), "times: "),
    ],
)
def test_what_is_no_video_is_refused(arguments: tuple[Any, ...], told: str) -> None:
    with pytest.raises(evatok.EvatokError, match=told):
        evatok.Video(*arguments)


def test_a_rate_may_be_a_fraction(square: Square) -> None:
    video = evatok.Video(torch.from_numpy(square(3, 8, 10, 0)), Fraction(30000, 1001))  # type: ignore[arg-type]
    assert repr(video) == "Video(3 frames, 10 × 8, 29.97 a second)"
    assert video.times[1] == Fraction(1001, 30000) and isinstance(video.rate, float)


def test_fvd_is_that_of_the_command(footage: Path) -> None:
    assert evatok.fvd(footage, footage, size=64, device="cpu") == pytest.approx(0, abs=1e-3)
    with pytest.raises(evatok.EvatokError, match="give one network"):
        evatok.fvd(footage, footage, features="nano,nano")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size: Input should be greater than or equal to 1, not 0"),
        ({"window": "foo"}, "window 'foo' is none of first"),
        ({"window": 0}, "window '0' is none of first"),
        ({"num_frames": 0}, "num_frames: Input should be greater than or equal to 1, not 0"),
        ({"count": -1}, "count is -1: give a whole number ≥ 2"),
        ({"seed": -1}, "seed is -1: give a whole number ≥ 0"),
    ],
)
def test_numbers_of_fvd_are_checked(footage: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(evatok.EvatokError, match=told):
        evatok.fvd(footage, footage, device="cpu", **options)


def test_run_folder_is_a_model(toy_dir: Path, tmp_path: Path) -> None:
    """runs/NAME/PART/model, as training leaves it; the wide final tokenizer where there is one."""
    for part in ("final", "router", "proxy"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model").symlink_to(toy_dir / part)
    model = evatok.load(tmp_path, "cpu")
    assert model.parts == ["proxy", "router", "final"]
    assert model.folder("final") == tmp_path / "final" / "model"
    assert model.encode(clips()).ids.numel() > 0
    (tmp_path / "final-wide").mkdir()
    (tmp_path / "final-wide" / "model").symlink_to(toy_dir / "proxy")
    assert evatok.load(tmp_path, "cpu").folder("final") == tmp_path / "final-wide" / "model"


def test_hub_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder here, and the"):
        evatok.load("nobody/nothing")


def test_shipped_models_are_whole() -> None:
    """The feature network lies with the networks, not with the model."""
    assert "features" in evatok.load("nano", "cpu").parts


def test_refined(model: evatok.Model, video: evatok.Video) -> None:
    """Of videos and of clips: other tokens, as many, and nearer to what was encoded."""
    plain, refined = model.encode(video), model.encode(video, refine=6)
    assert refined.header.assignment.endswith("refined 6") and len(refined) == len(plain)
    assert not np.array_equal(refined.ids, plain.ids)
    size = model.final.config.size
    clips = (torch.linspace(-1, 1, size) * torch.ones(2, 3, 16, size, 1)).contiguous()  # type: ignore[arg-type]
    coded = [model.encode(clips, refine=steps) for steps in (0, 12)]
    assert torch.equal(coded[0].assignment, coded[1].assignment)
    errors = [(model.decode(tokens) - clips).square().mean() for tokens in coded]
    assert errors[1] < errors[0]
    with pytest.raises(evatok.EvatokError, match="-1 steps"):
        model.encode(clips, refine=-1)


def test_parts_that_were_trained_are_saved_as_they_are_in_memory(
    toy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are those of the folder, to the byte, also where they are loaded."""
    model = evatok.load(toy_dir, device="cpu")
    _ = model.router, model.final, model.generator
    model.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        model.final.quantizer.codebook.mul_(-1)
    model.save_pretrained(tmp_path / "new")
    changed = evatok.load(tmp_path / "new", device="cpu").final.quantizer.codebook
    assert torch.equal(changed, model.final.quantizer.codebook)
    for part in model.parts:
        old, same, new = (
            (folder / part / "model.safetensors").read_bytes()
            for folder in (toy_dir, tmp_path / "same", tmp_path / "new")
        )
        assert old == same and (new == old) == (part != "final"), part

    pushed: list[dict] = []
    monkeypatch.setattr("evatok.api.model.push_run", lambda *_, **__: pushed.append(_[3]))
    model.push_to_hub("me/mine")
    assert pushed[0]["final"] is model.final


def test_a_changed_generator_is_saved_or_refused(toy_dir: Path, tmp_path: Path) -> None:
    """Never its old weights without a word."""
    model = evatok.load(toy_dir, device="cpu")
    plain = GPT.from_pretrained(toy_dir / "generator")
    for compiled in (None, False):
        model.generator = prepare_for_inference(plain, compiled=compiled)
        with torch.no_grad():
            model.generator.norm.weight.add_(1)
        if model.generator.state_dict().keys() == plain.state_dict().keys():
            model.save_pretrained(tmp_path / "new")
            again = GPT.from_pretrained(tmp_path / "new" / "generator")
            assert torch.equal(again.norm.weight, model.generator.norm.weight)
        else:
            with pytest.raises(evatok.EvatokError, match="cannot be saved"):
                model.save_pretrained(tmp_path / "no")
