import os
import signal
import subprocess
import sys
import time

import pytest
from tqdm import tqdm

from chexseg_jax.training.signals import Stopped, raise_on_signals
from datasets.errors import DataError
from experiments.run.cli import exclusive_workdir, exit_on_errors, managed_run

HOLD = """
import pathlib, sys, time
from experiments.run.cli import managed_run
with managed_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


STOPPABLE = """
import asyncio, os, signal, time
from tqdm import tqdm
from experiments.run.cli import exit_on_errors
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
async def interrupted():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
with exit_on_errors(), tqdm(total=3, desc="work"):
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, holder, capsys):
    with (
        pytest.raises(DataError, match="another run is at work in it"),
        exclusive_workdir(tmp_path),
    ):
        pytest.fail("it was let in")
    with pytest.raises(SystemExit, match="another --workdir"), managed_run(tmp_path):
        pytest.fail("it was let in")
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    with exclusive_workdir(tmp_path):
        pass


def test_sigterm_ends_a_run_with_143_and_a_word(holder):
    started = time.monotonic()
    holder.send_signal(signal.SIGTERM)
    _, said = holder.communicate(timeout=20)
    assert holder.returncode == 143 and time.monotonic() - started < 20
    assert b"Run the same command to go on" in said


# A process started in the background of a shell may have SIGINT ignored.
IMPORTING = (
    "import experiments, os, signal, time; "
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        # While modules are imported and flags are read, and outside the managed part of a command.
        (f"{IMPORTING} os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
        (f"{STOPPABLE}    os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130),
        (f"{STOPPABLE}    os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 143),
        # Where Python or asyncio swallows exceptions: it is sent again.
        (f"{STOPPABLE}    Finalized(); time.sleep(9)", 130),
        (f"{STOPPABLE}    asyncio.run(interrupted()); time.sleep(9)", 130),
    ],
)
def test_no_traceback_when_a_command_is_stopped(program, code):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == code
    lines = ended.stderr.strip().splitlines()
    assert lines[-1].startswith("Stopped") and "Trace" not in ended.stderr
    assert len(lines) == 1 or all("work" in line for line in lines[:-1] if line)  # the bar's lines


def test_a_sentence_is_not_glued_to_a_progress_bar(capsys):
    with pytest.raises(SystemExit), exit_on_errors(DataError):
        bar = tqdm(range(3), desc="work")
        next(iter(bar))
        raise DataError("no such row")
    assert capsys.readouterr().err.splitlines()[-1] == "no such row"


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), raise_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


NO_ROOM = (
    "No space left on device; free space there and run the same command again: "
    "what was finished is kept"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("no such row"), "no such row"),
        (OSError(2, "No such file", "/a/b"), "[Errno 2] No such file: '/a/b'"),
        (OSError(28, "No space", "/a/b"), f"/a/b: {NO_ROOM}"),
        (OSError(28, "No space"), f"WORKDIR: {NO_ROOM}"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, error, said):
    with pytest.raises(SystemExit) as ended, managed_run(tmp_path):
        raise error
    assert str(ended.value) == said.replace("WORKDIR", str(tmp_path))
