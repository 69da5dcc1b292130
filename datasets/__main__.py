"""Prepare data: python -m datasets {chexpert,chexlocalize,mimic,folder,phantom} --data-dir data.

    python -m datasets chexpert --raw ~/CheXpert-v1.0-small --data-dir data --workers 16
    python -m datasets chexlocalize --raw ~/CheXlocalize --data-dir data
    python -m datasets mimic --raw ~/mimic-cxr-jpg/2.1.0 --data-dir mimic --workers 16
    python -m datasets folder --images DIR --labels labels.csv --masks masks --data-dir mine
    python -m datasets phantom --data-dir phantoms

Images, tables and masks are validated; a fault is reported with its file, row, column and remedy. What
was interrupted or failed goes on with the same command.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from chexseg_jax.runtime.terminal import prepare_terminal

prepare_terminal()  # before imports that take seconds

from datasets.errors import FAULT_SHARE, FAULTS_ALLOWED, DataError, FaultPolicy  # noqa: E402
from datasets.prepare import FAULTS, prepare, prepare_phantoms  # noqa: E402
from datasets.source import available, open_source  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run one preparation and return the exit status: 143 after SIGTERM, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    name, data_dir = options.pop("name"), options["data_dir"]
    started = time.monotonic()
    try:
        with _exit_on_sigterm():
            if name == "phantom":
                prepare_phantoms(**options)
            elif not _prepare(name, **options):
                return 1
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    for name, splits in available(data_dir).items():
        counts = [f"{split} {len(open_source(data_dir, name, split))}" for split in splits]
        print(f"{name}: {', '.join(counts)}")
    print(f"{data_dir}, {time.monotonic() - started:.1f} s")
    return 0


def _prepare(name: str, data_dir: Path, raw: Path, on_fault: FaultPolicy, **options: Any) -> bool:
    """Prepare, and say how many faults there are; False if there are some under `list`."""
    faults = prepare(name, raw, data_dir, on_fault=on_fault, **options)
    if on_fault == "list":
        print(f"{len(faults.found)} faults in {faults.rows} rows: {data_dir / FAULTS}")
        return not faults.found
    if faults.found:
        print(f"{len(faults.found)} of {faults.rows} rows are left out: {data_dir / FAULTS}")
    return True


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit when SIGTERM arrives, so that what is open is closed."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _limit(text: str) -> float:
    """Parse a number of rows, or a share of them below 1."""
    try:
        limit = float(text)
    except ValueError:
        limit = -1
    if not (0 <= limit < 1 or limit == int(limit) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor a fraction")
    return limit


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
        "(CheXpert-v1.0 batch 1 ...), CheXpert Plus's PNGs, or CheXlocalize's CheXpert/{val,test}.",
    )
    chexlocalize = names.add_parser(
        "chexlocalize",
        help="validation and test images with experts' masks",
        description="Reads CheXlocalize's gt_segmentations_{val,test}.json (or gt_annotations) and, "
        "if present, hb_segmentations_test.json, with the images in CheXpert/{val,test} beside them.",
    )
    phantom = names.add_parser(
        "phantom",
        help="synthetic chest X-rays, and both data sets from them",
        description="Writes synthetic chest X-rays to DATA_DIR/raw-phantom in CheXpert's layout and "
        "prepares both data sets from them. Does nothing if that was done with the same options.",
    )
    mimic = names.add_parser(
        "mimic",
        help="MIMIC-CXR-JPG, prepared like CheXpert",
        description="Reads files/ and the tables mimic-cxr-2.0.0-{chexpert,split,metadata}.csv[.gz].",
    )
    folder = names.add_parser(
        "folder",
        help="data of one's own, prepared like CheXpert and CheXlocalize",
        description="Reads a folder of JPEG, PNG or DICOM files, a CSV file with the columns path, "
        "patient, view, split, sex, age and the observations (only path and one observation are "
        "required), and, with --masks, CheXlocalize's JSON or a PNG a finding.",
    )
    for command in (chexpert, chexlocalize, mimic):
        command.add_argument("--raw", type=Path, required=True, help="the download, or its parent")
    chexpert.add_argument(
        "--labels",
        metavar="NAME",
        help="a table in place of train.csv, such as train_visualCheXbert.csv or train_cheXbert.csv; "
        "for CheXpert Plus a file of labels, such as impression_fixed.json",
    )
    mimic.add_argument("--labels", metavar="NAME", help="a table in place of *-chexpert.csv")
    folder.add_argument(
        "--images", type=Path, required=True, dest="raw", help="what the paths are relative to"
    )
    folder.add_argument("--labels", metavar="FILE", required=True, help="the table of the images")
    folder.add_argument(
        "--masks",
        type=Path,
        help="JSON as CheXlocalize's, or a folder of IMAGE/FINDING.png or IMAGE_FINDING.png",
    )
    for command in (chexlocalize, folder):
        command.add_argument(
            "--resize-masks",
            action="store_true",
            help="resize masks to images of another size, such as CheXpert-v1.0-small's, which is a "
            "fault otherwise; scores at native size are then not comparable",
        )
    prepared = (chexpert, chexlocalize, mimic, folder)
    for command in prepared:
        command.add_argument(
            "--on-fault",
            choices=("stop", "list", "skip"),
            default="stop",
            help="stop at the first fault; list all in faults.csv and write nothing else; or skip "
            "their rows (default: stop)",
        )
        command.add_argument(
            "--fault-limit",
            type=_limit,
            help="number of rows, or their share below 1, that may be skipped (default: "
            f"{FAULT_SHARE:g}, and at least {FAULTS_ALLOWED} rows)",
        )
    for option, default, help_text in (
        ("--seed", 17, "random seed"),
        ("--train", 600, "training images with weak labels"),
        ("--valid", 234, "validation images, masks by an expert"),
        ("--test", 200, "test images, masks by two annotators"),
        ("--short-side", 256, "short side of the images in pixels"),
    ):
        phantom.add_argument(option, type=_count, default=default, help=f"{help_text} ({default})")
    for command in (*prepared, phantom):
        command.add_argument("--data-dir", type=Path, required=True, help="folder of prepared data")
        command.add_argument(
            "--workers", type=_count, default=0, help="worker processes (default: 0, this one)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
