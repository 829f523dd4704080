"""What ``qunlearn demo`` says about each of the six speakers, with the networks that travel with the package.

    python benchmarks/bench_verdicts.py [--out benchmarks/results]

The demo shows one speaker; this table shows all of them, with the reasons that the audit gives. Results:
``verdicts.json`` and ``verdicts.md``. One seed: rounding in sums over threads can move a single run by some points, so
the number of threads is recorded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from qunlearn.cli import journey
from qunlearn.cli import workspace as ws
from qunlearn.cli.common import Settings

METRICS = ("forget", "retain", "test", "mia")


def judge(settings: Settings, group: str) -> dict[str, Any]:
    """Figures, verdict, reasons and cost of the demo for one speaker."""
    dataset = ws.load_data(settings, journey.SOURCE)
    with tempfile.TemporaryDirectory() as folder:
        done = journey.erase(settings, journey.shipped(dataset), dataset, group, Path(folder))
    value = done.to_json()
    return {
        "group": group,
        "verdict": value["verdict"],
        "reasons": list(done.assessment.audits.reasons),
        "parity": value["parity"]["verdict"],
        "stop_reason": done.result.fields["stop_reason"],
        "seconds": done.result.seconds,
        "retrain_seconds": done.retrain_seconds,
        **{role: {m: value[role][m] for m in METRICS} for role in ("base", "unlearned", "retrained")},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a speaker: unlearned file, retrained file in brackets, per cent."""
    lines = ["| speaker | forget | retain | test | MIA | verdict | reasons |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = [f"{100 * r['unlearned'][m]:.1f} ({100 * r['retrained'][m]:.1f})" for m in METRICS]
        lines.append(f"| {r['group']} | {' | '.join(cells)} | {r['verdict']} | {'; '.join(r['reasons']) or '-'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    settings = Settings()
    rows = [judge(settings, g) for g in ws.load_data(settings, journey.SOURCE).group_names]
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "method": dict(journey.METHOD)}
    (args.out / "verdicts.json").write_text(json.dumps({**facts, "rows": rows}, indent=2, sort_keys=True) + "\n")
    (args.out / "verdicts.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
