"""The README's Python block runs as it stands, on real data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], "README.md", "exec"), {"__name__": "readme"})
    assert re.search(r"% of the codes changed, forget [\d.]+%", capsys.readouterr().out)
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def test_results_block_has_its_markers() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- results:begin -->") == 1
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")
    begin, end = text.index("<!-- results:begin -->") + 22, text.index("<!-- results:end -->")
    assert text[begin:end].strip()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = re.findall(r"^make ([a-z-]+)", (ROOT / page).read_text(), re.M)
        assert named
        assert set(named) <= targets
