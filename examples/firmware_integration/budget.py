"""Fails a build whose firmware is larger than agreed: python budget.py build/firmware/report.json budget.json

The budget is a JSON object of bytes, any of ``flash`` (code and one model), ``flash_with_slots`` (what a device needs
with its update slots), ``ram`` (arena, data and stack). Needs Python alone. Exit: 0 within, 1 over, 2 for a file that
cannot be used, a report without sizes included: no cross compiler made it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEYS = ("flash", "flash_with_slots", "ram")


def sizes(report: dict[str, Any]) -> dict[str, int]:
    """The figures that a budget can name, of the report's first board."""
    fits = report["fits"]
    if "total" not in report["flash"] or not fits:
        raise ValueError("the report has no sizes: install the cross compiler, or name the board (--board)")
    return {
        "flash": report["flash"]["total"],
        "flash_with_slots": fits[0]["need_flash"],
        "ram": report["ram"]["total"],
    }


def main() -> int:
    """One line a figure; the exit code."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        report, budget = (json.loads(Path(p).read_text()) for p in sys.argv[1:])
        found = sizes(report)
        bad = [k for k, v in budget.items() if k not in KEYS or isinstance(v, bool) or not isinstance(v, int)]
        if bad or not budget:
            raise ValueError(f"{sys.argv[2]} names {', '.join(bad) or 'nothing'}; it takes bytes for {', '.join(KEYS)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        print(f"FAIL: size budget: {err}", file=sys.stderr)
        return 2
    over = 0
    for key, most in budget.items():
        print(f"{key}: {found[key]:,} of {most:,} bytes")
        if found[key] > most:
            over += 1
            print(f"FAIL: {key} is {found[key] - most:,} bytes over the budget", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
