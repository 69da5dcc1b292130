"""A witness of a process that may end without a word of its own.

JAX aborts a process that has lost another, and a system short of memory kills one; neither waits for
a sentence. A small process reads a pipe whose other end only the first one holds: it says the sentence
if the pipe closes without a farewell.
"""

import subprocess
import sys


def watched(sentence: str) -> subprocess.Popen[bytes]:
    """Returns a process that says a sentence on standard error when this one ends.

    Unless it gets a farewell: anything on its standard input.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, sentence],
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt from the keyboard is not meant for it
    )


if __name__ == "__main__":
    if not sys.stdin.buffer.read():
        print(sys.argv[1], file=sys.stderr)
