"""``qunlearn verify``: check a signed update, as an auditor or a device owner would."""

from __future__ import annotations

from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings
from qunlearn.errors import ConfigError, MissingDependencyError

EXIT = {"pass": 0, "fail": 3, "inconclusive": 4}


@common.command(
    "verify",
    data=True,
    example="qunlearn verify update.qulb --trust keys/release.pub.pem --base runs/audit/before.onnx",
)
@click.argument("file", metavar="BUNDLE", type=click.Path())
@click.option("--trust", multiple=True, required=True, help="Public key of the maker; repeatable.")
@click.option("--allow-test-key", is_flag=True, help="Accept the published TEST key (--trust TEST).")
@click.option("--base", type=click.Path(), help="The base's ONNX file: recompute what follows from the files.")
@click.option("--verify-level", "level", type=click.IntRange(1, 3), help="Default: 2 with --base, else 1.")
@click.option("--allow-verdict", type=click.Choice(["pass", "inconclusive", "fail"]), default="pass", show_default=True)
@click.option("--data", "source", help="Level 3: the data.")
@click.option("--forget", help="Level 3: the deletion request.")
@click.option("--salt", type=click.Path(), help="Level 3: the run's request.salt.")
@click.option("--reference", type=click.Path(), help="Level 3: the retrained network's ONNX file.")
@click.option("--audit", "audits", help="Level 3: comma-separated audits to recompute; default all of the manifest.")
def command(
    settings: Settings,
    file: str,
    trust: tuple[str, ...],
    allow_test_key: bool,
    base: str | None,
    level: int | None,
    allow_verdict: str,
    source: str | None,
    forget: str | None,
    salt: str | None,
    reference: str | None,
    audits: str | None,
) -> int:
    """Check a bundle. Level 1: signatures and digests; 2: delta, target, self-test, parity; 3: audits on your data.

    Exit 0: it holds and its overall verdict is no worse than allowed; 3: something does not hold, or the verdict is
    fail; 4: the verdict is inconclusive.
    """
    from qunlearn.cli.packing import audit_line
    from qunlearn_export import capplier, keys, verify
    from qunlearn_export.bundle import Model
    from qunlearn_export.manifest import VERDICTS

    wanted = level if level is not None else 2 if base is not None else 1
    if wanted == 3 and (source is None or forget is None or salt is None or base is None):
        raise ConfigError("level 3 recomputes audits.", remedy="Give --base, --data, --forget and --salt.")
    opened = verify.open_bundle(file, keys.trusted(trust, allow_test_key=allow_test_key))
    checks = list(opened.checks)
    old = None if base is None else Model.read(base)
    if wanted >= 2:
        settings.say("recomputing from the files")
        try:
            applier = capplier.CApplier()
        except MissingDependencyError as err:
            applier = None
            checks.append(f"the C applier was not run: {err.message}")
        checks += verify.recompute(opened, old, applier=applier)
    again: list[dict[str, object]] = []
    if wanted == 3:
        from qunlearn.cli import recompute

        assert source is not None
        assert forget is not None
        assert salt is not None
        settings.say("recomputing audits")
        names = [n.strip() for n in audits.split(",")] if audits else None
        again, more = recompute.audits(
            settings,
            opened,
            Path(str(base)),
            source,
            forget,
            Path(salt),
            None if reference is None else Path(reference),
            names,
        )
        checks += more
    p = opened.predicate
    overall = p["verdict"]["overall"]
    value = {
        "level": wanted,
        "holds": True,
        "checks": checks,
        "key_id": keys.key_digest(opened.public)[:8].hex(),
        "verdict": p["verdict"],
        "recomputed": again,
        "manifest": opened.manifest,
    }
    lines = [f"{file}: holds at level {wanted}", *(f"  {c}" for c in checks)]
    lines.append(f"number {p['sequence']} over {p['baseSequence']} for class {p['device']['class']}")
    lines.append(f"overall verdict: {overall} (the maker allowed: {p['verdict']['allowed']})")
    lines += [audit_line(a) for a in p["audits"]]
    lines += [f"  recomputed {r['audit']} on {r['kind']}: {r['verdict']}  {r['text']}" for r in again]
    lines += ["what this does not show:", *(f"  {text}" for text in p["limits"])]
    settings.result(value, "\n".join(lines))
    return 0 if VERDICTS.index(overall) <= VERDICTS.index(allow_verdict) else EXIT[overall]
