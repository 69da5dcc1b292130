import os
import subprocess
import sys

import pytest

from experiments import pages
from experiments.pages import TUNABLE, VARIABLE


@pytest.fixture
def folder(tmp_path):
    """A folder where `experiments` is ours, with one command: it says the variable and its arguments."""
    package = tmp_path / "experiments"
    package.mkdir()
    for name in ("__init__.py", "pages.py"):
        (package / name).symlink_to(pages.__file__.replace("pages.py", name))
    (package / "say.py").write_text(
        f"import os, sys\nprint(os.environ.get('{VARIABLE}'), sys.argv[1:])"
    )
    return tmp_path


def said(folder, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_command_asks_for_large_pages_and_keeps_its_arguments(folder):
    arguments = ("-m", "experiments.say", "--rho", "0.9 1")
    assert said(folder, *arguments) == f"{TUNABLE}=1 ['--rho', '0.9 1']"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{TUNABLE}=0", f"{TUNABLE}=0"),
        ("glibc.malloc.check=0", f"glibc.malloc.check=0:{TUNABLE}=1"),
    ],
)
def test_what_the_environment_says_is_kept(folder, before, after):
    assert said(folder, "-m", "experiments.say", **{VARIABLE: before}) == f"{after} []"


def test_an_import_starts_nothing_anew(folder):
    assert said(folder, "-c", "import experiments.say") == "None []"
