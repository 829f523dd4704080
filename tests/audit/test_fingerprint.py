"""Digests change with content and with nothing else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qunlearn import fingerprint
from qunlearn.errors import ArtefactError, ConfigError


@dataclass(frozen=True)
class Settings:
    """A configuration with a default."""

    lr: float = 0.1
    steps: int = 3


def test_config_digest_is_canonical_and_writes_defaults_out() -> None:
    want = hashlib.sha256(b'{"lr":0.1,"steps":3}').hexdigest()
    assert fingerprint.config_digest(Settings()) == want
    assert fingerprint.config_digest({"steps": 3, "lr": 0.1}) == want
    assert fingerprint.config_digest({"steps": np.int64(3), "lr": np.float64(0.1)}) == want
    assert fingerprint.config_digest(Settings(steps=4)) != want


def test_config_digest_refuses_what_json_lacks() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        fingerprint.config_digest({"lr": float("nan")})
    with pytest.raises(ConfigError, match="set"):
        fingerprint.config_digest({"x": {1, 2}})


def test_source_digest_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "sub" / "b.c").write_text("int y;\n")
    first = fingerprint.source_digest({"p": tmp_path})
    (tmp_path / "notes.txt").write_text("not a source")
    assert fingerprint.source_digest({"p": tmp_path}) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = fingerprint.source_digest({"p": tmp_path})
    assert changed != first
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert fingerprint.source_digest({"p": tmp_path}) not in (first, changed)


def test_commit_tells_clean_dirty_and_untracked(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert fingerprint.commit_of(package) == "no-tree"

    def git(*args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert fingerprint.commit_of(package) == "no-tree"
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert fingerprint.commit_of(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("x = 1\n")
    assert fingerprint.commit_of(package) == "dirty"


def test_code_digest_names_version_sources_and_commit() -> None:
    version, sources, commit = fingerprint.code_digest().split("+")
    assert version == fingerprint.code_version().version
    assert len(sources) == 64
    assert commit


def test_file_digest_and_its_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert fingerprint.digest_file(tmp_path / "f") == fingerprint.digest_bytes(b"abc")
    with pytest.raises(ArtefactError, match="cannot read"):
        fingerprint.digest_file(tmp_path / "missing")


def test_environment_is_plain_and_complete() -> None:
    env = fingerprint.environment()
    assert fingerprint.plain(env) == env
    assert env["packages"]["numpy"] == np.__version__
    assert env["cpu_flags"]
    assert fingerprint.package_version("no-such-distribution-anywhere") == "absent"


def test_audits_import_neither_torch_nor_onnxruntime_nor_scikit_learn() -> None:
    code = "import sys, qunlearn.audit; print([m for m in ('torch', 'onnxruntime', 'sklearn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
