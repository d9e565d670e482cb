"""mlops upload: what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_sagemaker import refusal
from mlops import cli
from mlops.target import UsageError
from mlops.upload import check_upload
from shell import Shell
from world import Interruption


def test_an_upload_that_is_denied_is_one_line(shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def denied() -> None:
        raise refusal("PutObject", "AccessDenied", "You are not authorized")

    data = tmp_path / "x.csv"
    data.write_text("text,label\n")
    shell.world.around.interruption = Interruption("PutObject", denied)
    assert cli.main(["upload", "--data", str(data)]) == 1
    assert "AccessDenied" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "caf\udce9.csv"
    data.write_text("text,label\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        check_upload(data)
