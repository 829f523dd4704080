"""What the compilers make of the projection kernels: registers, spills and 16-byte loads for every target.

    python benchmarks/bench_kernels_compile.py [--json FILE]

Needs no GPU and says nothing of speed: triton compiles its kernels and nvcc the CUDA source, NVIDIA's disassembler
reads both. A compiler that is absent is named and left out. Takes about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from qunlearn_export.errors import MissingDependencyError
from qunlearn_kernels.compile_report import TARGETS, KernelReport, cuda_report, triton_report
from qunlearn_kernels.cuda_backend import nvcc


def versions() -> dict[str, str]:
    """Of torch, triton and nvcc; ``absent`` where there is none."""
    out = {}
    for name in ("torch", "triton"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    compiler = nvcc()
    if compiler is None:
        return {**out, "nvcc": "absent"}
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return {**out, "nvcc": said.strip().splitlines()[-1]}


def main() -> None:
    """Compile, print one line a kernel and target, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "kernels_compile.json")
    target_file = parser.parse_args().json
    made: list[KernelReport] = []
    absent: list[str] = []
    compilers: tuple[Callable[[int], list[KernelReport]], ...] = (cuda_report, triton_report)
    print(f"{'target':8}{'backend':9}{'registers':>10}{'spills':>8}{'16-byte loads':>15}{'other loads':>13}  kernel")
    for report in compilers:
        try:
            for capability in TARGETS:
                for line in report(capability):
                    made.append(line)
                    print(
                        f"{line.target:8}{line.backend:9}{line.registers:10}{line.spills:8}{line.wide_loads:15}"
                        f"{line.narrow_loads:13}  {line.kernel}"
                    )
        except MissingDependencyError as error:
            absent.append(str(error))
            print(f"left out: {error}")
    result = {"versions": versions(), "left_out": absent, "kernels": [asdict(line) for line in made]}
    target_file.parent.mkdir(parents=True, exist_ok=True)
    target_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
