"""The whole pipeline on toy settings: every stage trained for a few steps, then taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evatok.cli.app import main
from evatok.core.config import ConfigError, load_config
from evatok.hub import load
from evatok.model_folders import PARTS
from evatok.workflows.pipeline import GateError, Pipeline
from evatok.workflows.pipeline_settings import FILES

TRAIN = """
  batch_size: 4
  log_every: 2
  validate_every: 2
  save_every: 2
"""


def write_settings(folder: Path, footage: Path, run_dir: Path) -> None:
    """Toy settings in the layout of configs/nano."""
    folder.mkdir()
    shape = "levels: [1, 2, 4], num_frames: 16, size: 32"
    former = "{width: 16, layers: 1, heads: 2}"
    texts = {
        "data": f"""
data:
  size: 32
  workers: 1
  cache_dir: {run_dir / "cache"}
  sources: [{{kind: ucf101, root: {footage}}}]
""",
        "pipeline": f"""
run_dir: {run_dir}
gate: {{set: squares, clips: 4, min_gain: -100}}
report: {{clips: 4, networks: [nano], guidance: [1.0, 2.0], preferences: [1.6]}}
""",
        "features": f"""
base: data.yaml
stage: features
model: {{widths: [4, 4, 8, 8], dim: 6}}
train: {TRAIN}  steps: 2
""",
        "proxy": f"""
base: data.yaml
stage: proxy
model: {{{shape}, encoder: {former}, decoder: {former}, codebook_size: 16, code_dim: 4}}
validation_clips: 2
train: {TRAIN}  steps: 3
""",
        "search": f"""
base: data.yaml
model: {run_dir}/proxy/model
clips: 6
batch_size: 4
""",
        "router": f"""
base: data.yaml
model: {{{shape}, width: 16, layers: 1, heads: 2}}
table: {run_dir}/search/train
held_out_table: {run_dir}/search/test
search_batch: 4
train: {TRAIN}  steps: 2
""",
        "preference": """
base: router.yaml
model: {preference: true}
w_q_range: [0.4, 2.0]
""",
        "text": """
base: data.yaml
clips: 12
vocabulary_size: 400
""",
        "final": f"""
base: proxy.yaml
stage: final
router: {run_dir}/router/model
train: {{steps: 2}}
""",
        "final-wide": f"""
base: final.yaml
router: {run_dir}/preference/model
w_q_range: [1.0, 2.0]
start_from: {run_dir}/final/model
""",
        "tokens": f"""
base: data.yaml
tokenizer: {run_dir}/final-wide/model
router: {run_dir}/router/model
frames: {{prefix: [4, 1]}}
text: {run_dir}/text
windows: 2
batch_size: 8
""",
        "generator": f"""
tokens: {run_dir}/tokens
tokenizer: {run_dir}/final-wide/model
model: {{width: 16, layers: 1, heads: 2, hidden: 32}}
frame_share: 0.4
text_share: 0.3
pictures: 2
train: {TRAIN}  steps: 2
""",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def check_curves(result: dict[str, Any], folder: Path) -> None:
    rows: list[dict[str, Any]] = result["curves"]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["strategy"], []).append(row)
    assert [row["setting"] for row in by_name["uniform"]] == [1, 2, 4]
    assert [row["mean_tokens"] for row in by_name["uniform"]] == [4, 8, 16]
    assert all(abs(row["gain"]) < 1e-9 for row in by_name["uniform"])
    assert all(row["percentile"] == pytest.approx(100) for row in by_name["max-reward"])
    assert len(by_name["max-reward"]) == len(by_name["threshold"]) == 9
    assert by_name["router"][0]["percentile"] <= 100 and len(by_name["router"]) == 1
    dearest = max(by_name["max-reward"], key=lambda row: row["setting"])  # w_q 2: quality alone
    assert dearest["psnr"] == max(row["psnr"] for row in rows)
    assert all(row["fvd[nano]"] >= 0 for row in rows)
    assert [row["strategy"] for row in result["kept"]] == ["router", "router(w_q)"]
    names = {"curves.csv"} | {
        f"{metric}-squares{suffix}"
        for metric in ("psnr", "fvd-nano")
        for suffix in (".svg", ".png")
    }
    assert {path.name for path in folder.iterdir()} == names
    assert len((folder / "curves.csv").read_text().splitlines()) == 1 + len(rows)


def test_from_videos_to_report(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run_dir = tmp_path / "toy", tmp_path / "run"
    write_settings(settings, footage, run_dir)

    # stopped in the middle, then taken up
    assert main(["pipeline", str(settings), "--until", "search", "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ["features", "proxy", "gate", "search"]
    assert [(row["step"], row["state"]) for row in first["steps"]] == [
        (name, "done now") for name in names
    ]
    assert (run_dir / "gate" / "levels.svg").is_file()

    # a run that was killed within a step begins that step again
    record = run_dir / "steps" / "search.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    assert main(["pipeline", str(settings), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["state"] for row in result["steps"][:4]] == ["was done"] * 3 + ["done now"]
    assert result["results"]["search"] == first["results"]["search"]
    assert {row["state"] for row in result["steps"][4:]} == {"done now"}

    # what is there at the end
    models = load(run_dir / "export")
    assert models.parts == [*PARTS, "preference"]
    assert models.generator.text is not None
    assert models.text.pieces.digest == models.generator.text.digest
    report = json.loads((run_dir / "report" / "report.json").read_text())
    tables = report["tables"]
    assert list(tables) == ["levels", "tokenizers", "router", "samples", "predictions", "texts"]
    assert all(tables.values())
    assert tables["router"][0]["num_clips"] == 8
    assert tables["tokenizers"][-1]["tokenizer"] == "router, w_q 1.6 (final)"
    assert tables["router"][0]["best_uniform_level"] in (1, 2, 4)
    assert {row["guidance"] for row in tables["samples"]} == {1.0, 2.0}
    text = (run_dir / "report" / "report.md").read_text()
    for picture in ("clips.png", "levels.svg", "tradeoff-squares.svg"):
        assert picture in text and (run_dir / "report" / "figures" / picture).is_file()
    assert (run_dir / "export" / "report.json").is_file()

    # curves of the same search
    words = ["--tables", str(run_dir / "search"), "--model", str(run_dir / "export")]
    words += ["-o", str(tmp_path / "curves"), "--features", "nano", "--json"]
    assert main(["curves", str(settings / "search.yaml"), *words]) == 0
    curves = json.loads(capsys.readouterr().out.splitlines()[-1])
    check_curves(curves, tmp_path / "curves")

    # a setting that the record does not know yet, at its default, is no change
    record = run_dir / "steps" / "proxy.json"
    written = json.loads(record.read_text())
    assert written["settings"].pop("alignment")["weight"] == 0
    record.write_text(json.dumps(written))

    # all is finished: nothing is done again
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert main(["pipeline", str(settings), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["state"] for row in again["steps"]} == {"was done"}
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert before == after

    # a damaged record is named
    record = run_dir / "steps" / "gate.json"
    whole = json.loads(record.read_text())
    for damage, said in (
        ("{", "JSON"),
        ("", "JSON"),
        ('{"step": "gate"}', "settings: Field required"),
        (json.dumps(whole | {"seconds": None}), "seconds"),
        (json.dumps(whole | {"step": "proxy"}), "is the record of proxy"),
        (json.dumps(whole | {"result": {"gate": {"passed": True}}}), "set: Field required"),
        (json.dumps({k: v for k, v in whole.items() if k != "result"}), "without result"),
    ):
        record.write_text(damage)
        assert main(["pipeline", str(settings)]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "gate.json" in told and said in told
    record.write_bytes(b"\xff\xfe")
    assert main(["pipeline", str(settings)]) == 2
    assert "remove it to do the step again" in capsys.readouterr().err
    record.write_text(json.dumps(whole))

    # other settings are refused, and so is what was made from another result
    router = settings / "router.yaml"
    router.write_text(router.read_text() + "w_q: 0.5\n")
    assert main(["pipeline", str(settings)]) == 2
    assert "router was begun with other settings (w_q was 1.2, is 0.5)" in capsys.readouterr().err
    router.write_text(router.read_text().replace("w_q: 0.5\n", ""))
    preference = (settings / "preference.yaml").read_text()
    (settings / "preference.yaml").unlink()
    assert main(["pipeline", str(settings)]) == 2
    assert "report.preferences asks for a router of preference.yaml" in capsys.readouterr().err
    (settings / "preference.yaml").write_text(preference)
    proxy = json.loads((run_dir / "steps" / "proxy.json").read_text())
    proxy["result"]["weights"] = "other"
    (run_dir / "steps" / "proxy.json").write_text(json.dumps(proxy))
    assert main(["pipeline", str(settings)]) == 2
    assert "gate was made from another result of proxy" in capsys.readouterr().err


def test_gate_stops_the_pipeline(footage: Path, tmp_path: Path) -> None:
    settings, run_dir = tmp_path / "toy", tmp_path / "run"
    write_settings(settings, footage, run_dir)
    path = settings / "pipeline.yaml"
    path.write_text(path.read_text().replace("-100", "50"))
    said: list[str] = []
    with pytest.raises(GateError, match=r"gate does not hold on squares.*--force"):
        Pipeline(settings, said.append).run(until="search")
    assert not (run_dir / "search").exists()
    with pytest.raises(GateError):  # still, and without measuring again
        Pipeline(settings, said.append).run(until="search")
    assert sum("gate: finished in" in line for line in said) == 1
    result = Pipeline(settings, said.append).run(until="search", force=True)
    assert result["steps"][-1]["step"] == "search"


def test_settings_that_do_not_agree(footage: Path, tmp_path: Path) -> None:
    settings = tmp_path / "toy"
    write_settings(settings, footage, tmp_path / "run")
    path = settings / "router.yaml"
    path.write_text(path.read_text().replace("search_batch: 4", "search_batch: 8"))
    path = settings / "final.yaml"
    path.write_text(path.read_text().replace("run/router", "run/other"))
    with pytest.raises(ConfigError, match=r"router.search_batch is 8, should be 4; final.router"):
        Pipeline(settings)
    with pytest.raises(ValueError, match="no step 'cook'"):
        write_settings(tmp_path / "more", footage, tmp_path / "run2")
        Pipeline(tmp_path / "more").run(until="cook")


def test_nano_settings_agree(root: Path) -> None:
    """The shipped settings are valid and fit each other."""
    for name, schema in FILES.items():
        load_config(schema, root / "configs" / "nano" / f"{name}.yaml")
    steps = [step.name for step in Pipeline(root / "configs" / "nano").steps()]
    assert steps[0] == "arcade" and steps[-2:] == ["export", "report"]
