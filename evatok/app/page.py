"""The page of `evatok app`: tabs that call `evatok.app.actions`. Needs gradio (extra `app`).

It works offline: no analytics, no fonts of other hosts. One request runs at a time.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evatok.api.model import SAMPLE_RATE, Model, load
from evatok.app import actions
from evatok.app.pictures import CSS, alert, card, cards, facts, note, tokens_chart
from evatok.cli.errors import message_for_user
from evatok.core.errors import EvatokError, MissingPackageError
from evatok.generate.samples import frame_condition, guidance_of

MAX_UPLOAD = "64mb"  # of a file
MAX_WAITING = 16  # requests in the queue
KEPT_SECONDS = 3600  # uploads and results are deleted after it
BY_ROUTER, BY_QUALITY, BY_BUDGET = "Router", "Quality", "Budget"
# The folders that hold uploads and results: a reader knows only the name behind them.
UPLOADED = re.compile(rf"{re.escape(tempfile.gettempdir())}/\S*/")

Handler = Callable[..., Iterator[Any]]


def import_gradio() -> Any:
    """Return gradio.

    Raises:
        MissingPackageError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the page needs the package gradio: pip install 'evatok[app]'"
        ) from error


def serve(
    model: str = "nano", host: str = "127.0.0.1", port: int = 7860, device: str = "auto"
) -> tuple[str, Callable[[], None]]:
    """Serve the page from threads of this process.

    Args:
        model: as `evatok.load` takes it.
        host: address to listen at; 0.0.0.0 lets other machines in.
        port: likewise; 0 takes a free one.
        device: where the model works.

    Returns:
        The page's address, and a function that ends it.

    Raises:
        EvatokError: no gradio, no such model, or a port that is taken.
    """
    gradio = import_gradio()
    page = build(gradio, load(model, device), model)
    try:
        _, url, _ = page.queue(max_size=MAX_WAITING, default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port or _free_port(host),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            theme=_theme(gradio),
            css=CSS,
            footer_links=[],
        )
    except OSError as error:
        raise EvatokError(
            f"{host}:{port} is taken, or no address of this machine: give another --port or --host"
        ) from error
    return url, page.close


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _theme(gradio: Any) -> Any:
    """Return a theme whose fonts are the reader's own."""
    return gradio.themes.Soft(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def build(gradio: Any, model: Model, name: str) -> Any:
    """Return the page, not yet served."""
    with gradio.Blocks(
        title="evatok", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(
            "# evatok\nAdaptive-length video tokenization: more tokens where a clip is hard, "
            f"fewer where it is easy. Model: `{name}`."
        )
        with gradio.Tab("Reconstruct"):
            _reconstruct_tab(gradio, model)
        with gradio.Tab("Sample"):
            _sample_tab(gradio, model)
        with gradio.Tab("Predict"):
            _predict_tab(gradio, model)
        with gradio.Tab("Compare"):
            _compare_tab(gradio, model)
    return page


def in_one_line(work: Handler, keep: Sequence[Any], show: Callable[[str], Any]) -> Handler:
    """Let errors that a user can mend become a line of the page; others keep their traceback.

    Args:
        work: yields a tuple of outputs.
        keep: for each output the value that leaves it as it is.
        show: makes of HTML what the line takes.

    Returns:
        Yields the line, of no HTML if all is well, before the outputs.
    """

    def safe(*values: Any) -> Iterator[Any]:
        try:
            for outputs in work(*values):
                yield show(""), *outputs
        except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
            message = message_for_user(error)
            if message is None:
                raise
            yield show(alert(UPLOADED.sub("", message))), *keep

    return safe


def _button(gradio: Any, words: str, name: str) -> tuple[Any, Any]:
    """Return a button and the line under it that tells errors."""
    return gradio.Button(words, variant="primary", elem_id=name), gradio.HTML(visible=False)


def _on_click(
    gradio: Any, button: tuple[Any, Any], work: Handler, inputs: list[Any], outputs: list[Any]
) -> None:
    """Run `work` when a button is pressed."""
    press, line = button

    def show(told: str) -> Any:
        return gradio.update(value=told, visible=bool(told))

    safe = in_one_line(work, [gradio.skip() for _ in outputs], show)
    press.click(safe, inputs, [line, *outputs], show_progress_on=outputs)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for results; gradio has copied what it shows when the handler goes on."""
    return tempfile.TemporaryDirectory(prefix="evatok-app-")


def _video(gradio: Any, title: str) -> Any:
    with gradio.Column(min_width=200):
        gradio.Markdown(f"**{title}**")
        return gradio.Video(
            label=title, show_label=False, height=300, buttons=[], autoplay=True, loop=True
        )


def _given(file: Any) -> Any:
    if not file:
        raise EvatokError("upload a video first")
    return file


def _reconstruct_tab(gradio: Any, model: Model) -> None:
    with gradio.Row():
        with gradio.Column(scale=1):
            file = gradio.File(label="Video", file_types=["video", ".gif"], height=120)
            way = gradio.Radio(
                [BY_ROUTER, BY_QUALITY, BY_BUDGET], value=BY_ROUTER, label="Tokens by"
            )
            quality = gradio.Slider(0, 2, 1.5, step=0.05, label="Quality (w_q)", visible=False)
            budget = gradio.Number(
                64, label="At most, tokens of a clip of one tile", precision=0, visible=False
            )
            refine = gradio.Slider(
                0,
                actions.MAX_REFINE,
                0,
                step=10,
                label="Refinement steps (slow)",
                elem_id="refine",
            )
            run = _button(gradio, "Reconstruct", "run-reconstruct")
            gradio.HTML(
                note(
                    f"The first {actions.MAX_FRAMES} frames, scaled down to {actions.MAX_SIDE} "
                    "pixels, in tiles of the tokenizer's size. Files up to 64 MB."
                )
            )
        with gradio.Column(scale=3):
            with gradio.Row():
                original = _video(gradio, "Original")
                decoded = _video(gradio, "Reconstruction")
            told = gradio.HTML(elem_id="told-reconstruct")
            chart = gradio.HTML()
            token_file = gradio.File(label="Token file", height=80, visible=False)

    def work(
        file: Any, way: str, quality: float, budget: float | None, refine: float
    ) -> Iterator[Any]:
        limit = int(budget) if way == BY_BUDGET and budget is not None else None
        with _folder() as folder:
            made = actions.reconstruct(
                model,
                _given(file),
                Path(folder),
                quality if way == BY_QUALITY else None,
                limit,
                int(refine),
            )
            frames, height, width, _ = made.video.frames.shape
            pairs = [
                ("tokens", f"{made.num_tokens:,}"),
                ("bytes of the token file", f"{made.num_bytes:,}"),
                ("bits per pixel", f"{made.bits_per_pixel:.4f}"),
                ("dB PSNR", f"{made.psnr:.2f}"),
                ("frames", f"{frames}"),
                ("pixels", f"{width} × {height}"),
            ]
            drawn = tokens_chart(made.tiles, made.grid, made.seconds)
            shown = gradio.File(str(made.token_file), visible=True)
            yield str(made.original), str(made.decoded), facts(pairs), drawn, shown

    def choose(way: str) -> tuple[Any, Any]:
        return gradio.update(visible=way == BY_QUALITY), gradio.update(visible=way == BY_BUDGET)

    way.change(choose, way, [quality, budget], queue=False)
    outputs = [original, decoded, told, chart, token_file]
    _on_click(gradio, run, work, [file, way, quality, budget, refine], outputs)


def _sample_tab(gradio: Any, model: Model) -> None:
    if "generator" not in model.parts:
        gradio.HTML(note("This model has no generator yet."))
        return
    names = list(model.generator.vocabulary.class_names)
    takes_text = model.generator.text is not None
    levels = ", ".join(map(str, model.final.levels.values))
    with gradio.Row():
        with gradio.Column(scale=1):
            classes = gradio.Dropdown(names, multiselect=True, label="Classes", elem_id="classes")
            text = gradio.Textbox(
                label="or a text",
                placeholder="a bright clip of Frogger with much motion",
                visible=takes_text,
                elem_id="text",
            )
            count = gradio.Slider(1, actions.MAX_CLIPS, 4, step=1, label="Clips")
            most = gradio.Number(
                None, label="At most, tokens of a clip (0: no limit)", precision=0, minimum=0
            )
            lengths = gradio.Textbox(
                label=f"Tokens of each of {model.final.num_blocks} blocks ({levels})",
                placeholder="the generator's choice",
                elem_id="lengths",
            )
            guidance = gradio.Slider(1, 5, guidance_of(model, None), step=0.25, label="Guidance")
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
            run = _button(gradio, "Sample", "run-sample")
        with gradio.Column(scale=3):
            shown = gradio.HTML(elem_id="told-sample")

    def work(
        classes: list[str],
        text: str,
        count: float,
        most: float | None,
        lengths: str,
        guidance: float,
        seed: float,
    ) -> Iterator[tuple[str]]:
        limit = int(most) if most else None
        top = model.final.levels.values[-1]
        values = (int(count), int(seed), guidance, limit, lengths)
        for clips in actions.sample(model, classes or (), text or "", *values):
            made = (
                card(
                    clip.title,
                    clip.frames,
                    SAMPLE_RATE,
                    f"{sum(clip.blocks)} tokens" + ("" if clip.is_done else " …"),
                    clip.blocks,
                    top,
                )
                for clip in clips
            )
            yield (cards(made),)

    inputs = [classes, text, count, most, lengths, guidance, seed]
    _on_click(gradio, run, work, inputs, [shown])


def _predict_tab(gradio: Any, model: Model) -> None:
    if "generator" not in model.parts or model.generator.frames is None:
        gradio.HTML(note("This model predicts no frames."))
        return
    given = frame_condition(model).num_frames
    with gradio.Row():
        with gradio.Column(scale=1):
            file = gradio.File(label="Video", file_types=["video", ".gif"], height=120)
            start = gradio.Number(0, label="First given frame", precision=0, minimum=0)
            frames = gradio.Slider(
                given + 1,
                actions.MAX_PREDICTED,
                model.final.config.num_frames,
                step=1,
                label=f"Frames of the result, the {given} given ones included",
            )
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
            run = _button(gradio, "Predict", "run-predict")
        with gradio.Column(scale=3):
            shown = gradio.HTML(elem_id="told-predict")

    def work(file: Any, start: float, frames: float, seed: float) -> Iterator[tuple[str]]:
        made = actions.predict(model, _given(file), int(frames), int(start or 0), int(seed or 0))
        rest = len(made.predicted) - made.given
        detail = f"{made.given} frames given, {rest} generated"
        if made.psnr is not None:
            detail += f" · {made.psnr:.2f} dB"
        rate = made.predicted.rate
        told = f"{len(made.real)} frames"
        real = card("Real", made.real.frames.numpy(), rate, told)
        predicted = card("Predicted", made.predicted.frames.numpy(), rate, detail)
        yield (cards([real, predicted]),)

    _on_click(gradio, run, work, [file, start, frames, seed], [shown])


def _compare_tab(gradio: Any, model: Model) -> None:
    with gradio.Row():
        first = gradio.File(label="Folder of real videos", file_count="directory", height=180)
        second = gradio.File(label="Folder of other videos", file_count="directory", height=180)
    run = _button(gradio, "Measure FVD[nano]", "run-compare")
    shown = gradio.HTML(elem_id="told-compare")

    def work(first: Any, second: Any) -> Iterator[tuple[str]]:
        sides = [[str(file) for file in side or ()] for side in (first, second)]
        with _folder() as folder:
            made = actions.compare(sides[0], sides[1], Path(folder), str(model.device))
        pairs = [
            ("FVD[nano]", f"{made.value:.2f}"),
            ("videos", f"{made.counts[0]} and {made.counts[1]}"),
        ]
        protocol = note(
            "The first 16 frames of each video, 128 × 128 pixels, the shipped network. A value "
            "compares with others of FVD[nano] at the same numbers of videos alone, "
            "and of few videos it says little."
        )
        yield (facts(pairs) + protocol,)

    _on_click(gradio, run, work, [first, second], [shown])
