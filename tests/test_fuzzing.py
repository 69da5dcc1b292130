"""Every reader reads hundreds of damaged files; `python -m tests.fuzzing` reads thousands."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTS = ("--pictures=300", "--masks=300", "--tables=250", "--weights=200", "--dicoms=200")


def test_damaged_files_are_rejected_or_valid():
    """In a process that has not used JAX, because it forks."""
    command = [sys.executable, "-m", "tests.fuzzing", "--seed=1", *COUNTS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


FAULTS = {
    "dies": "died of SIGSEGV",
    "leaves": "exit code 3",
    "outgrows": "MemoryError",
    "undocumented": "KeyError",
    "nameless": "does not name the file",
    "invalid": "accepted, but",
    "hangs": "a hang of 1 s",
}
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tests.fuzzing import judging
from tests.fuzzing.targets import Target, check

def reader(path):
    match path.suffix:
        case ".dies": os.kill(os.getpid(), signal.SIGSEGV)
        case ".leaves": os._exit(3)
        case ".outgrows": bytearray(2**32)
        case ".undocumented": {}["a"]
        case ".nameless": raise ValueError("no")
        case ".invalid": check(False, "invalid")
        case ".hangs": time.sleep(60)

judging.SECONDS = 1
files = [file for name in sys.argv[2:] for file in [("." + name, b""), (".good", b"")]]
target = Target(list, (), (reader,), (ValueError,))
for outcome in judging.read_files(target, files, Path(sys.argv[1])):
    print(*outcome["results"][0])
"""


def test_every_fault_is_reported_and_later_files_are_read(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *FAULTS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert [line.strip() for line in lines[1::2]] == ["accepted"] * len(FAULTS), run.stderr
    for line, message in zip(lines[::2], FAULTS.values(), strict=True):
        assert line.startswith("fault") and message in line
