"""Start-up, exit codes, faults, stack painting and instruction counts on the emulated boards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from images import EMULATED, GCC, Bench, flags, program, run

from qunlearn_export import boards, codegen, qemu
from qunlearn_export.qemu import Run

pytestmark = pytest.mark.cross
HEAD = '#include "qul_board.h"\n#include "qul_rt.h"\nint main(void);\n'
BODY = {
    "exit": 'int main(void) { qul_print("a line\\n"); return 7; }',
    "null call": "int main(void) { void (*volatile f)(void) = (void (*)(void))0; f(); return 0; }",
    "exception": (
        "int main(void) { *(volatile uint32_t *)0xE000ED04u = 1u << 28; "
        '__asm volatile("dsb" ::: "memory"); __asm volatile("isb" ::: "memory"); return 0; }'
    ),
    "loop": "int main(void) { for (;;) { } }",
    "lockup": (
        "static int32_t deep(volatile int32_t *v) { volatile int32_t pad[4096]; pad[0] = *v + 1; "
        "return deep(pad) + pad[0]; }\nint main(void) { volatile int32_t v = 0; return deep(&v); }"
    ),
}


def go(
    folder: Path, board: str, body: str, limit: float = 60.0, *, opt: str = "-O2", extra: tuple[str, ...] = ()
) -> Run:
    bench = program(folder, boards.BOARDS[board], HEAD + body + "\n")
    return qemu.run(bench.build(opt=opt, extra=extra), bench.board, limit)


@pytest.mark.parametrize("name", EMULATED)
def test_a_line_and_an_exit_code(name: str, tmp_path: Path) -> None:
    """Text is read from standard output alone; the code is the program's own."""
    found = go(tmp_path, name, BODY["exit"])
    assert (found.code, found.stdout) == (7, "a line")
    assert found.stack is not None
    assert 0 < found.stack < 200


@pytest.mark.parametrize("name", EMULATED)
def test_faults(name: str, tmp_path: Path) -> None:
    assert go(tmp_path, name, BODY["null call"]).code == qemu.HARD_FAULT
    assert go(tmp_path, name, BODY["exception"]).code == qemu.EXCEPTION


def test_endless_loop_and_lockup(tmp_path: Path) -> None:
    found = go(tmp_path, "mps2-an386", BODY["loop"], 1.0)
    assert (found.code, found.stack, found.meaning) == (qemu.TIMED_OUT, None, "time limit")
    found = go(tmp_path, "mps2-an386", BODY["lockup"], opt="-O0", extra=("-Wno-infinite-recursion",))
    assert found.code == qemu.ABORTED


def test_no_emulator_for_this_image(tmp_path: Path) -> None:
    with pytest.raises(qemu.InvariantError, match="did not start"):
        qemu.run(tmp_path / "absent.elf", boards.BOARDS["mps2-an386"])


@pytest.mark.parametrize("name", EMULATED)
def test_painting_at_no_optimisation(name: str, tmp_path: Path) -> None:
    """It stops below the live stack; what a deep call used is counted."""
    body = """
static QUL_NOINLINE int32_t use(int32_t n)
{
    volatile uint8_t block[2000];
    int32_t i;
    for (i = 0; i < 2000; i++) { block[i] = (uint8_t)(n + 1); }
    return block[n];
}
int main(void) { return use(4); }
"""
    found = go(tmp_path, name, body, opt="-O0")
    assert found.code == 5
    assert found.stack is not None
    assert 2000 < found.stack < 2400


def test_data_and_bss(tmp_path: Path) -> None:
    """Initial values are copied, the rest is zero."""
    body = """
static volatile int32_t set[3] = {5, 6, 7};
static volatile int32_t unset[40];
int main(void) { int32_t i; for (i = 0; i < 40; i++) { if (unset[i] != 0) { return 1; } } return set[0] + set[2]; }
"""
    for name in EMULATED:
        assert go(tmp_path, name, body).code == 12, name


COUNT = """
void qul_hook(uint32_t node);
static QUL_NOINLINE void spin(uint32_t n)
{{
    __asm volatile("1: subs %0, %0, #1\\n bne 1b" : "+r"(n) : : "cc");
}}
int main(void)
{{
    qul_hook(0);
    spin({first}u);
    qul_hook(1);
    spin({second}u);
    qul_hook(2);
    return 0;
}}
"""


@pytest.mark.parametrize("name", EMULATED)
def test_instructions_are_calibrated(name: str, tmp_path: Path) -> None:
    """A loop of known length within 1 %; a longer one wraps the 24-bit counter."""
    found = go(tmp_path, name, COUNT.format(first=500_000, second=1_000), extra=("-DQUL_HOOKS",))
    assert len(found.insn) == 2
    assert found.insn[0] == pytest.approx(1_000_000, rel=0.01)
    assert found.insn[1] == pytest.approx(2_000, abs=80)


def test_seven_hundred_million_instructions(tmp_path: Path) -> None:
    found = go(tmp_path, "mps2-an386", COUNT.format(first=350_000_000, second=350_000), extra=("-DQUL_HOOKS",))
    assert found.insn[0] == pytest.approx(700_000_000, rel=0.001)
    assert found.insn[1] == pytest.approx(700_000, rel=0.01)


def test_an_empty_image_is_small(tmp_path: Path) -> None:
    for name in EMULATED:
        bench = program(tmp_path / name, boards.BOARDS[name], HEAD + "int main(void) { return 0; }\n")
        text = run(["arm-none-eabi-size", str(bench.build())], bench.folder).splitlines()[1].split()
        assert int(text[0]) < 600, name


def calls(elf: Path) -> dict[str, set[str]]:
    """Which functions of an image call which."""
    out: dict[str, set[str]] = {}
    name = ""
    for line in run(["arm-none-eabi-objdump", "-d", str(elf)], elf.parent).splitlines():
        head = re.match(r"^[0-9a-f]+ <([\w.]+)>:$", line)
        if head:
            name = head[1]
            out[name] = set()
        call = re.search(r"\sb(?:l|\.w|\.n)?\s+[0-9a-f]+ <([\w.]+)(\+0x[0-9a-f]+)?>", line)
        if call and (call[1] != name or call[2] is None):
            out[name].add(call[1])
    return out


def reaches_itself(graph: dict[str, set[str]], name: str) -> bool:
    seen: set[str] = set()
    todo = set(graph.get(name, ()))
    while todo:
        one = todo.pop()
        if one == name:
            return True
        if one not in seen:
            seen.add(one)
            todo |= graph.get(one, set())
    return False


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from networks import tiny_cnn

    options = codegen.Options(boards=("mps2-an385",), vectors=4)
    files = codegen.generate(codegen.site(tiny_cnn()), options)
    return Bench(tmp_path_factory.mktemp("tiny"), files, boards.BOARDS["mps2-an385"])


def test_no_function_is_compiled_into_a_call_of_itself(tiny: Bench) -> None:
    """With -fno-builtin dropped and builtins on, the copy loop calls memcpy, which is that loop."""
    graph = calls(tiny.build("good"))
    assert len(graph) > 20
    assert not [name for name in graph if reaches_itself(graph, name)]
    options = [f for f in flags(tiny.board, "-O3") if f not in ("-fno-builtin", "-ffreestanding")]
    text = run([*GCC, *options, "-fbuiltin", "-S", "-o", "-", "qul_rt.c"], tiny.folder)
    assert "memcpy" in text or "memmove" in text or "memset" in text


def test_symbols(tiny: Bench) -> None:
    """No heap, no printing, no double, no 64-bit division, in any build; on soft float only the float32 helpers."""
    bad = re.compile(r"malloc|free|printf|sbrk|__aeabi_(d|[ul]*ldivmod|f2d|l2d|ul2d|uldiv|ldiv)|__(u?div|u?mod)di3")
    for opt in ("-O2", "-Os", "-O0"):
        rows = run(["arm-none-eabi-nm", str(tiny.build(f"nm{opt}", opt=opt))], tiny.folder).splitlines()
        names = {row.split()[-1] for row in rows}
        assert "__aeabi_fmul" in names
        assert not [n for n in names if bad.search(n)]
