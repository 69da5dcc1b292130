"""Prepare data: python -m datasets {chexpert,chexlocalize,phantom} --data-dir data.

    python -m datasets chexpert --raw ~/CheXpert-v1.0-small --data-dir data --workers 16
    python -m datasets chexlocalize --raw ~/CheXlocalize --data-dir data
    python -m datasets phantom --data-dir phantoms

Images, tables and masks are validated; the first error is reported with its file, row, column and
remedy, and no partial output remains.
"""

import argparse
import sys
import time
from pathlib import Path

from datasets.errors import DataError
from datasets.prepare import prepare, prepare_phantoms
from datasets.source import available, open_source


def main(arguments: list[str] | None = None) -> int:
    """Run one preparation and return the exit status."""
    options = vars(_parser().parse_args(arguments))
    name, data_dir = options.pop("name"), options["data_dir"]
    started = time.monotonic()
    try:
        if name == "phantom":
            prepare_phantoms(**options)
        else:
            prepare(name, **options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, splits in available(data_dir).items():
        counts = [f"{split} {len(open_source(data_dir, name, split))}" for split in splits]
        print(f"{name}: {', '.join(counts)}")
    print(f"{data_dir}, {time.monotonic() - started:.1f} s")
    return 0


def _count(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m datasets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    chexpert = names.add_parser(
        "chexpert",
        help="images with fourteen image-level labels",
        description="Reads CheXpert-v1.0-small, CheXpert-v1.0, the folders of the full-size download "
        "(CheXpert-v1.0 batch 1 ...), or CheXlocalize's CheXpert/{val,test}.",
    )
    chexlocalize = names.add_parser(
        "chexlocalize",
        help="validation and test images with experts' masks",
        description="Reads CheXlocalize's gt_segmentations_{val,test}.json (or gt_annotations) and, "
        "if present, hb_segmentations_test.json, with the images in CheXpert/{val,test} beside them.",
    )
    chexlocalize.add_argument(
        "--resize-masks",
        action="store_true",
        help="resize masks to images of another size, such as CheXpert-v1.0-small's, which is an error "
        "otherwise; scores at native size are then not comparable",
    )
    phantom = names.add_parser(
        "phantom",
        help="synthetic chest X-rays, and both data sets from them",
        description="Writes synthetic chest X-rays to DATA_DIR/raw-phantom in CheXpert's layout and "
        "prepares both data sets from them. Does nothing if that was done with the same options.",
    )
    for command in (chexpert, chexlocalize):
        command.add_argument("--raw", type=Path, required=True, help="the download, or its parent")
    for option, default, help_text in (
        ("--seed", 17, "random seed"),
        ("--train", 600, "training images with weak labels"),
        ("--valid", 234, "validation images, masks by an expert"),
        ("--test", 200, "test images, masks by two annotators"),
        ("--short-side", 256, "short side of the images in pixels"),
    ):
        phantom.add_argument(option, type=_count, default=default, help=f"{help_text} ({default})")
    for command in (chexpert, chexlocalize, phantom):
        command.add_argument("--data-dir", type=Path, required=True, help="folder of prepared data")
        command.add_argument(
            "--workers", type=_count, default=0, help="worker processes (default: 0, this one)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
