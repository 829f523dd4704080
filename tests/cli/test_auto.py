"""``qunlearn unlearn --set lr=auto``: what is printed, counted and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qunlearn.cli import settle

SETTINGS = ["--method", "oeu", "--set", "lr=auto", "--set", "max_steps=20", "--set", "probe=64"]
SETTINGS += ["--set", "diag_every=1000", "--seed", "3"]


def test_lr_auto(call: Callable[..., Any], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["unlearn", home / "base", "--forget", "class=7", *SETTINGS, "--json", "-o"]
    done = call(*command, tmp_path / "a")
    assert done.code == 0, done.err
    search = done.json["lr_search"]
    assert done.json["config"]["lr"] == search["lr"]
    assert f"lr=auto: {search['lr']:g} after" in done.err
    for pilot in search["pilots"]:
        assert f"lr {pilot['lr']:g}: " in done.err
    assert not (tmp_path / "a" / settle.NAME).exists()
    plain = [a if a != "lr=auto" else f"lr={search['lr']}" for a in command]
    fixed = call(*plain, tmp_path / "b").json  # the same run as with that number, but for the pilots' cost
    assert done.json["digests"] == fixed["digests"]
    assert done.json["passes"] == pytest.approx(fixed["passes"] + search["passes"])
    assert search["passes"] > 0

    # an interrupted run goes on with the rate that its folder knows
    folder = tmp_path / "c"
    kept = {}
    write = settle.write_json
    monkeypatch.setattr(settle, "write_json", lambda p, v: (kept.update(v), write(p, v)))
    assert call(*command, folder).code == 0
    for path in folder.iterdir():
        path.unlink()
    (folder / settle.NAME).write_text(json.dumps(kept))
    monkeypatch.setattr(settle, "settle_lr", lambda *a, **k: pytest.fail("settled again"))
    assert call(*command, folder, "--resume").json["digests"] == fixed["digests"]
    for text in ("{", "[]", json.dumps({**kept, "identity": "x"}), json.dumps({**kept, "lr": "1"})):
        for path in folder.iterdir():
            path.unlink()
        (folder / settle.NAME).write_text(text)
        refused = call(*command, folder, "--resume")
        assert refused.code == 2
        assert settle.NAME in refused.err
