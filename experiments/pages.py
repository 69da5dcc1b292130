"""Memory in pages of 2 MiB, which a command asks for by starting itself once more.

XLA on CPUs takes a step's scratch, gigabytes, anew at every step, and the kernel clears it page by page as
it is touched: at 4 KiB that was a quarter of a step (`docs/performance.md`). glibc asks for large pages
only if its environment says so as it is loaded.
"""

import os
import sys
from typing import Final

VARIABLE: Final = "GLIBC_TUNABLES"
TUNABLE: Final = "glibc.malloc.hugetlb"


def ask_for_large_pages() -> None:
    """Replaces this process by the same with large pages, where it was started as one of our commands.

    What the environment already says of them is respected; so that it says something is also how
    this ends. Elsewhere than on Linux nothing is done, and other C libraries read no such variable.
    """
    command = sys.orig_argv[1:3]
    ours = len(command) == 2 and command[0] == "-m" and command[1].startswith("experiments.")
    said = os.environ.get(VARIABLE, "")
    if sys.platform == "linux" and ours and TUNABLE not in said:
        os.environ[VARIABLE] = ":".join(filter(None, (said, f"{TUNABLE}=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
