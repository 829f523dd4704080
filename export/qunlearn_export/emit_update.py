"""``update_main.c``: a complete program with updates for an emulated board, its flash and its updates being files.

It is what an integrator writes for a real board, with the simulated flash in place of a driver. The Makefile of a
folder with ``--ota`` builds it in place of ``main.c``, without ``weights.c`` and ``selftest.c`` (a copy of the base in
the program could not be erased) and with ``QUL_EXTERNAL_BLOB``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from qunlearn_export.boards import Board, board_files
from qunlearn_export.errors import ConfigError

SCHEMES: Mapping[str, str] = {"ab": "qul_two_slots", "inplace": "qul_in_place"}
NOBODY = UUID(int=0)
"""The device class of a folder for which none was given."""
RUNTIME = ("qul_flash_sim.h", "qul_flash_sim.c")
"""Runtime files of the program, beside those of every folder with ``--ota``."""
MAIN = ("update_main.c", "qul_flash_sim.c")
"""Sources that a real product replaces by its own."""
LEFT_OUT = ("main.c", "weights.c", "selftest.c")
DEFINES = ("-DQUL_EXTERNAL_BLOB",)
SIGNATURE = "qul_ed25519_verify"
"""Deepest of the functions that update code calls through a pointer."""


def update_main(
    prefix: str, *, ota: str, public: bytes, device_class: UUID, sequence: int = 1, page: int = 4096
) -> dict[str, str]:
    """The file by name. ``public`` is the raw key that the device trusts; ConfigError for an unknown ``ota``."""
    if ota not in SCHEMES or len(public) != 32 or page < 256 or page % 16:
        raise ConfigError(f"update program for --ota {ota!r}, page {page}.", remedy="Use ab or inplace.")
    text = (Path(__file__).resolve().parent / "firmware" / "board" / "update_main.c").read_text()
    values = {
        "P": prefix,
        "U": prefix.upper(),
        "SCHEME": SCHEMES[ota],
        "SEQUENCE": str(sequence),
        "PAGE": str(page),
        "KEY": ", ".join(str(b) for b in public),
        "CLASS": ", ".join(str(b) for b in device_class.bytes),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return {"update_main.c": text}


PROBE = """\
/* The update code as a product links it, to be measured: no driver, no buffer but the page, nothing that is run. */
#include "model.h"
#include "ota.h"

static uint8_t page[4096], receipt[QUL_RECEIPT];
static qul_flash_t driver;
static qul_map_t map;
static qul_state_t state;
static const uint8_t keys[1][32];
static const qul_device_t device = {{
    &{scheme}, &driver, &map, &{p}_qul_layout, &{p}_qul_model, {{0}}, keys, 1, qul_ed25519_verify, 4096, page, 0, 0, 0,
    0, 0,
}};

int main(void)
{{
    int rc = qul_boot(&device, &state) + qul_update(&device, &state, page, sizeof page, receipt);
    {p}_run();
    return rc + {p}_argmax() + qul_provision(&device, &state, page, 1);
}}
"""


def probe(prefix: str, ota: str) -> str:
    """A main file that links what a product with updates links, for its sizes."""
    return PROBE.format(p=prefix, scheme=SCHEMES[ota])


def program(
    files: Mapping[str, bytes], main: Mapping[str, str], board: Board, runtime: Path
) -> tuple[dict[str, bytes], list[str]]:
    """A generated folder with this program in place of its own main: files, and the settings that ``make`` needs."""
    out = {name: data for name, data in files.items() if name not in LEFT_OUT and name != "weights.bin"}
    out |= board_files(board)
    out |= {name: text.encode() for name, text in main.items()}
    out |= {name: (runtime / name).read_bytes() for name in RUNTIME}
    sources = sorted(name for name in out if name.endswith(".c") and "/" not in name)
    return out, [f"SOURCES={' '.join(sources)}"]
