"""Draw a small COCO dataset to try things with: `python -m sam3_lora.synthetic shapes.zip`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from sam3_lora.synthetic.coco_export import write_dataset
from sam3_lora.synthetic.scenes import NOVEL, SHAPES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sam3_lora.synthetic", description=__doc__)
    parser.add_argument("archive", type=Path, help="zip file to write")
    parser.add_argument("--concepts", nargs="+", default=list(NOVEL), choices=list(SHAPES), help="annotated shapes")
    parser.add_argument("--train", type=int, default=16, help="training images")
    parser.add_argument("--valid", type=int, default=4, help="validation images")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        write_dataset(drawn, concepts=options.concepts, train=options.train, valid=options.valid, seed=options.seed)
        made = shutil.make_archive(str(Path(folder) / "archive"), "zip", drawn)
        shutil.move(made, options.archive)


if __name__ == "__main__":
    main()
