"""What the bytes of a file are: codes, numbers of each channel, and structure, beside the size rule.

    python benchmarks/bench_size.py

Networks and forms of bench_forms.py; sizes do not depend on the numbers. Writes benchmarks/results/size.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from bench_forms import networks

from qunlearn import quant
from qunlearn_export import graph as g
from qunlearn_export import writer

HERE = Path(__file__).parent
PARTS = ("codes", "scales", "biases", "bias scales", "zero points", "constants' names", "nodes", "shapes", "rest")
KIND = {
    "weight": "codes",
    "weight_scale": "scales",
    "out_scale": "scales",
    "bias": "biases",
    "bias_scale": "bias scales",
    "weight_zp": "zero points",
    "bias_zp": "zero points",
    "out_zp": "zero points",
}
"""The last part of a constant's name; others (limits of Clip, target shapes) count as rest."""


def parts(graph: g.Graph, form: str) -> Counter[str]:
    """Bytes of the file by part; ``nodes`` and ``shapes`` (value_info) include their names."""
    model = writer.to_model(graph, form=form)
    found: Counter[str] = Counter()
    for t in model.graph.initializer:
        found[KIND.get(t.name.rpartition(".")[2], "rest")] += len(t.raw_data)
        found["constants' names"] += t.ByteSize() - len(t.raw_data)
    found["nodes"] = sum(n.ByteSize() for n in model.graph.node)
    found["shapes"] = sum(v.ByteSize() for v in model.graph.value_info)
    found["rest"] += len(writer.serialize(graph, form=form)) - found.total()
    return found


def main() -> None:
    """Count, print, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = [f"| network | form | {' | '.join(PARTS)} | all | allowed |", "|---" * (len(PARTS) + 4) + "|"]
    for name, model in networks().items():
        graph = quant.lower(model)
        allowed = int(writer.SIZE_FACTOR * sum(layer.weight.size for layer in graph.weighted()) + writer.SIZE_FIXED)
        for form in ("qdq", "qop"):
            found = parts(graph, form)
            total = f"{found.total():,}" if found.total() <= allowed else f"**{found.total():,}**"
            lines.append(f"| {name} | {form} | {' | '.join(f'{found[p]:,}' for p in PARTS)} | {total} | {allowed:,} |")
    text = "\n".join([*lines, ""])
    print(text)
    (HERE / "results" / "size.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
