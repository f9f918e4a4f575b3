"""Copy the six-class subset behind our UCF-101 numbers out of a copy of UCF-101.

    python -m benchmarks.ucf6 downloads/UCF-101 data/ucf6

`configs/nano/ucf6` lists its 303 videos: 228 for training, 75 for testing, by official split 1.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from evatok.core.files import atomic_folder

LISTS = Path(__file__).resolve().parent.parent / "configs" / "nano" / "ucf6"


def copy_subset(ucf101: Path, output: Path, lists: Path = LISTS) -> int:
    """Copy listed videos and the lists; return the number of videos.

    Args:
        ucf101: folder of class folders, as the set is published.
        output: folder to make; complete or absent afterwards.
        lists: folder of classInd.txt, trainlist01.txt and testlist01.txt.

    Raises:
        ValueError: videos are missing, or the output exists.
    """
    rows = [
        line
        for split in ("train", "test")
        for line in (lists / f"{split}list01.txt").read_text("utf-8").splitlines()
    ]
    names = [row.split()[0] for row in rows]
    missing = [name for name in names if not (ucf101 / name).is_file()]
    if missing:
        raise ValueError(
            f"{ucf101} lacks {len(missing)} of {len(names)} videos, {missing[0]} for one: "
            "give the folder that holds UCF-101's class folders"
        )
    if output.exists():
        raise ValueError(f"{output} exists: remove it, or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output) as partial:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ucf101 / name, partial / name)
        for source in sorted(lists.glob("*.txt")):
            shutil.copyfile(source, partial / source.name)
    return len(names)


def main() -> None:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ucf101", type=Path)
    parser.add_argument("output", type=Path)
    words = parser.parse_args()
    try:
        count = copy_subset(words.ucf101, words.output)
    except ValueError as error:
        parser.error(str(error))
    print(f"{count} videos in {words.output}")


if __name__ == "__main__":
    main()
