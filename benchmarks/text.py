"""Text alignment of samples: the report's table "texts" alone.

    python -m benchmarks.text --model runs/nano/export --json

Shares of samples of held-out captions that are of the named class, as bright and as lively as the
text says; `evatok/measure/text_alignment.py` says what each is compared with.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from evatok.core.config import load_config
from evatok.hub import load
from evatok.measure.clip_sets import held_out_sets
from evatok.measure.text_alignment import PAIRS, text_rows
from evatok.report.tables import markdown
from evatok.workflows.tokens import TokensConfig
from generator.inference.requests import SamplingConfig


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether texts are followed.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--settings", type=Path, default=Path("configs/nano/tokens.yaml"))
    parser.add_argument("--clips", type=int, default=360, help="held-out clips of each set")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of each class")
    parser.add_argument("--guidance", default="1,2", help="scales with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args()
    scales = [float(word) for word in options.guidance.split(",")]
    sets = held_out_sets(load_config(TokensConfig, options.settings).data, options.clips)
    rows = text_rows(
        load(options.model), sets, SamplingConfig(), scales, options.seed, options.pairs
    )
    print(json.dumps({"texts": rows, "seed": options.seed}) if options.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
