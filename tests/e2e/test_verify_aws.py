"""`make verify-aws` with the local AWS as if it was the account: the same code, of which only AWS itself is missing."""

from __future__ import annotations

import os
import subprocess
import sys

from deployed import Pipeline
from local import stack


def test_a_run_sees_what_was_seen_before_and_leaves_nothing(pipeline: Pipeline) -> None:
    command = [sys.executable, "-m", "mlops", "verify-aws", "--target", "local", "--yes"]
    ended = subprocess.run(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, text=True, check=False)
    results = stack.state_folder() / "verify"
    assert ended.returncode == 0
    (found,) = results.glob("mlops-verify-*/differences.txt")
    assert found.read_text() == ""
    assert sorted(path.name for path in results.iterdir()) == [found.parent.name]
