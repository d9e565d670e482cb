"""The bench on a system that cannot measure what it measures."""

from __future__ import annotations

import subprocess
import sys

from dev import bench


def test_elsewhere_than_on_linux_it_says_that_it_needs_linux() -> None:
    handler = bench.ROOT / "lambda" / "model_evaluator" / "handler.py"
    program = (
        "import runpy, sys\n"
        "sys.platform = 'darwin'\n"
        f"sys.argv = [{str(bench.INVOCATION)!r}, {str(handler)!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input="[]", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("which only Linux can tell: run it there\n")
