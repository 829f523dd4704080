"""What `qunlearn bundle build` collects: networks from runs or files, the request's samples, keys, salts."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qunlearn.cli.common import Settings, require_workstation
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ArtefactError, ConfigError, DataError
from qunlearn.fingerprint import digest_bytes
from qunlearn_export import capplier, guard, keys, verify
from qunlearn_export.bundle import Built, Model
from qunlearn_export.files import write_atomic
from qunlearn_export.graph import Graph

if TYPE_CHECKING:
    from qunlearn_export.keys import Signer

BASES = ("before.onnx", "base.onnx")
TARGETS = ("after.onnx", "model.onnx")
SALT = "request.salt"
TEST = "TEST"


def model(given: str | None, folder: Path, names: tuple[str, ...], option: str) -> Model:
    """A network from an ONNX file, from a run (exported as `qunlearn export` does), or from the audit folder."""
    if given is not None and Path(given).is_dir():
        require_workstation()
        from qunlearn.cli import artefact

        network, config = artefact.open_run(Path(given))
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.onnx"
            artefact.export_model(network, config, file, inputs=None)
            return Model.read(file)
    if given is not None:
        return Model.read(given)
    for name in names:
        if (folder / name).is_file():
            return Model.read(folder / name)
    raise ConfigError(f"{folder} holds none of {', '.join(names)}.", remedy=f"Give a run or an ONNX file by {option}.")


def method(run: Path) -> dict[str, Any]:
    """Name, version, config digest and seed of the method, from the run's result.json and config.json."""
    result, config = _object(run / "result.json"), _object(run / "config.json")
    try:
        return {
            "name": result["method"],
            "version": str(result["config"].get("version", 1)),
            "config": result["digests"]["config"],
            "seed": config["provenance"]["method_seed"],
        }
    except (KeyError, TypeError) as err:
        raise ArtefactError(
            f"{run} is not the run of an unlearning method.", remedy="Give the folder that `qunlearn unlearn` wrote."
        ) from err


@dataclass(frozen=True)
class Asked:
    """The request on its data: what the guard must not find."""

    request: Request
    dataset: Dataset
    seed: int

    @property
    def canonical(self) -> bytes:
        """What the request's commitment is over."""
        return self.request.canonical_bytes(self.dataset, self.seed)

    @property
    def samples(self) -> int:
        """Number of forget samples."""
        return len(self.request.select(self.dataset, self.seed))

    @property
    def split(self) -> str:
        """Digest of the division of the data under the request."""
        return make_splits(self.dataset, self.request, seed=self.seed).digest()

    def guard(self, *graphs: Graph) -> guard.Guard:
        """A guard against every sample of the request, its ids and the plain digests that would give it away."""
        forget = Samples(self.dataset, self.request.select(self.dataset, self.seed))
        stored = self.dataset.x[forget.index]
        forms = guard.sample_forms(stored, forget.inputs(), [g.activations[g.input] for g in graphs])
        return guard.Guard({**forms, **guard.digest_forms(self.digests(forget))}, [str(i) for i in forget.ids])

    def digests(self, forget: Samples) -> Iterable[str]:
        """Plain SHA-256 values of the samples, the request in its spellings, and the split."""
        values = ",".join(self.request.values)
        spellings = [f"{self.request.kind}={values}", values, *self.request.values]
        plain = {self.request.kind: list(self.request.values)}
        spellings += [json.dumps(plain), json.dumps(plain, separators=(",", ":"))]
        yield from forget.content_hashes()
        yield from (digest_bytes(text.encode()) for text in spellings if text)
        yield digest_bytes(self.canonical)
        yield self.request.digest(self.dataset, self.seed)
        yield self.split


def asked(settings: Settings, run: Path, source: str | None, forget: str, seed: int) -> Asked:
    """The request on the data of the run; DataError when the data found are not those it was trained on."""
    request = Request.parse(forget)
    if source is not None:
        return Asked(request, sources.load(source, data_dir=settings.data_dir, seed=0), seed)
    config = _object(run / "config.json")
    if not isinstance(config.get("data"), str):
        raise ArtefactError(f"{run / 'config.json'} names no data.", remedy="Give them by --data.")
    dataset = sources.load(config["data"], data_dir=settings.data_dir, seed=0)
    if config.get("provenance", {}).get("dataset_digest", dataset.digest()) != dataset.digest():
        raise DataError(
            f"the data of {config['data']!r} are not those that the run was trained on.",
            remedy="Give the original data by --data-dir.",
        )
    return Asked(request, dataset, seed)


def salt(path: Path) -> bytes:
    """The 32 random bytes that key the commitments; made with mode 0600 where the file does not exist."""
    if not path.exists():
        write_atomic(path, secrets.token_bytes(32), mode=0o600)
    return read_salt(path)


def read_salt(path: Path) -> bytes:
    """The salt of an existing file; ConfigError when others may read it or it is not one."""
    try:
        mode, data = stat.S_IMODE(path.stat().st_mode), path.read_bytes()[:64]
    except OSError as err:
        raise ConfigError(f"cannot read the salt {path}: {err.strerror}.", remedy="Check --salt.") from err
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"others may read the salt {path}.", remedy=f"chmod 600 {path}")
    if len(data) != 32:
        raise ConfigError(f"{path} is not a salt of 32 bytes.", remedy="Give the run's request.salt.")
    return data


def signer(
    key: str | None, passphrase_file: str | None, command: str | None, public: str | None, *, allow_test_key: bool
) -> Signer:
    """The hand that signs: a key file, the published TEST key, or a command."""
    if (key is None) == (command is None):
        raise ConfigError(
            "a bundle is signed by one hand.", remedy="Give --key FILE, or --signer COMMAND --public PEM."
        )
    hand: Signer
    if command is not None:
        if public is None:
            raise ConfigError("--signer needs --public.", remedy="Give the public key of the signer.")
        hand = keys.CommandSigner(command=command, public=keys.load_public(public))
    elif key == TEST:
        hand = keys.test_signer()
    else:
        assert key is not None
        phrase = None
        if passphrase_file is not None or keys.is_encrypted(key):
            phrase = passphrase(passphrase_file, confirm=False)
        hand = keys.load_private(key, phrase)
    keys.refuse_test_key(hand.public, allowed=allow_test_key)
    return hand


def passphrase(file: str | None, *, confirm: bool) -> bytes:
    """From a file (its first line), else asked for on a terminal."""
    if file is not None:
        try:
            return Path(file).read_bytes()[:4096].split(b"\n")[0].rstrip(b"\r")
        except OSError as err:
            raise ConfigError(f"cannot read {file}: {err.strerror}.", remedy="Check --passphrase-file.") from err
    if not sys.stdin.isatty():
        raise ConfigError("no passphrase was given.", remedy="Give --passphrase-file FILE (or --no-passphrase).")
    text: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()


def generated_c(graph: Graph) -> dict[str, int]:
    """Generated C against the oracle on synthetic inputs, every layer: no difference, or an error."""
    return capplier.compare_c(graph, verify.synthetic(graph, verify.PARITY_INPUTS))


def epoch() -> float:
    """``SOURCE_DATE_EPOCH`` where it is set (then two builds are equal), else now."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return time.time()
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise ConfigError("SOURCE_DATE_EPOCH is not a number of seconds.", remedy="Set it to seconds since 1970.")
    return float(text)


def built_text(made: Built, path: Path) -> str:
    """What was built, for the terminal."""
    p: Mapping[str, Any] = made.manifest["predicate"]
    c, v = p["change"], p["verdict"]
    lost = "" if c["lost"] is None else f", {100 * c['lost']:.1f} % of the moved weights lost to rounding"
    lines = [
        f"{path}: {made.sizes['all']:,} bytes; {made.kind} of {made.sizes['body']:,} bytes in an update.bin of "
        f"{made.sizes['update.bin']:,}",
        f"  number {p['sequence']} over {p['baseSequence']} for class {p['device']['class']}",
        f"  codes changed: {c['codesChanged']:,} of {c['codes']:,} ({100 * c['share']:.2f} %){lost}",
        f"  overall verdict: {v['overall']} (allowed: {v['allowed']})",
        *(audit_line(a) for a in p["audits"]),
        "  no forget sample, id or plain digest of the request was found in it",
    ]
    return "\n".join([*lines, *(f"  warning: {w}" for w in made.warnings)])


def audit_line(a: Mapping[str, Any]) -> str:
    """One audit of a manifest: never a verdict without its artefact kind and reference."""
    value = "value withheld" if a["value"] is None else f"{a['metric']} {a['value']:.4g}"
    if a["interval"] is not None:
        value += f" [{a['interval']['lo']:.4g}, {a['interval']['hi']:.4g}]"
    reference = a["reference"]["kind"]
    if a["reference"]["value"] is not None:
        reference += f" {a['reference']['value']:.4g}"
    return f"  {a['audit']} on {a['kind']}: {a['verdict']}  {value}, reference: {reference}"


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ArtefactError(f"cannot read {path}.", remedy="Give the folder that `qunlearn unlearn` wrote.") from err
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} does not hold an object.", remedy="Make the run anew.")
    return value
