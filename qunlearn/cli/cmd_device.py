"""``qunlearn device``: a Linux device's side of signed updates. Needs the base install only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings
from qunlearn.errors import ArtefactError, ConfigError, QunlearnError

if TYPE_CHECKING:
    from qunlearn_export.store import Store

MAX_INPUT = 256 * 2**20


@click.group("device", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """A Linux device's store of one model: verify, apply, run, rollback-check; init at the factory."""


def _store(folder: str) -> Store:
    from qunlearn_export.store import Store

    return Store(Path(folder))


_STORE = click.option("--store", "folder", required=True, type=click.Path(file_okay=False), help="The device's store.")


@common.command(
    "init",
    example="qunlearn device init base.onnx --store /var/lib/model --trust release.pub.pem --device-class "
    "7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10",
)
@click.argument("model", type=click.Path())
@_STORE
@click.option("--device-class", required=True, type=click.UUID, help="Class (UUID) that updates must name.")
@click.option("--trust", multiple=True, required=True, help="Public key of the updates' maker; up to two.")
@click.option("--allow-test-key", is_flag=True, help="Accept the published TEST key.")
@click.option("--sequence", type=click.IntRange(1, 2**32 - 1), default=1, show_default=True, help="Of this model.")
def init(
    settings: Settings,
    model: str,
    folder: str,
    device_class: Any,
    trust: tuple[str, ...],
    allow_test_key: bool,
    sequence: int,
) -> int:
    """The factory's step: make a store with its first int8 MODEL, its class and the keys that it will trust."""
    from qunlearn_export import device, keys

    if len(trust) > 2:
        raise ConfigError(f"{len(trust)} keys; a device holds up to two.", remedy="Give one, or old and new.")
    trusted = keys.trusted(trust, allow_test_key=allow_test_key)
    active = device.init(folder, model, device_class=device_class, trust=trusted, sequence=sequence)
    value = {"store": folder, "sequence": active.sequence, "files": dict(active.files)}
    settings.result(value, f"store {folder} runs model {active.sequence}")
    return 0


@common.command("verify", example="qunlearn device verify update.qulb --store /var/lib/model")
@click.argument("bundle", type=click.Path())
@_STORE
def verify(settings: Settings, bundle: str, folder: str) -> int:
    """Would this BUNDLE install? All steps up to the self-test in memory; nothing is written. Exit 3 if refused."""
    from qunlearn_export import device

    def work() -> tuple[dict[str, Any], str]:
        store = _store(folder)
        with store.locked():
            checked = device.check(store, bundle)
        value = {"sequence": checked.sequence, "passed": checked.passed}
        return value, f"update {checked.sequence} may be installed; {checked.passed} self-test vectors pass"

    return _answer(settings, work)


@common.command("apply", example="qunlearn device apply update.qulb --store /var/lib/model --receipt receipt.bin")
@click.argument("bundle", type=click.Path())
@_STORE
@click.option("--receipt", type=click.Path(dir_okay=False), help="Copy the 100-byte receipt here.")
@click.option("--mac-key", type=click.Path(), help="File with this device's HMAC-SHA-256 key, for the receipt.")
def apply(settings: Settings, bundle: str, folder: str, receipt: str | None, mac_key: str | None) -> int:
    """Install a BUNDLE: verify, write, commit, erase the old model. Exit 3 if refused; the old model then runs on."""
    from qunlearn_export import device
    from qunlearn_export.files import write_atomic
    from qunlearn_export.runtime import read_bytes

    key = None if mac_key is None else read_bytes(mac_key, max_bytes=4096)

    def work() -> tuple[dict[str, Any], str]:
        done = device.apply(_store(folder), bundle, mac_key=key)
        if receipt is not None:
            write_atomic(receipt, done.receipt.to_bytes())
        value = {
            "sequence": done.sequence,
            "counter": done.receipt.counter,
            "removed": done.removed,
            "passed": done.receipt.passed,
            "old_slot": "blank" if done.receipt.read_back == 0 else "not blank",
        }
        return value, f"model {done.sequence} is installed, {done.removed} old files are erased"

    return _answer(settings, work)


@common.command("run", example="qunlearn device run inputs.npy --store /var/lib/model")
@click.argument("inputs", type=click.Path())
@_STORE
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the logits here (.npy).")
def run(settings: Settings, inputs: str, folder: str, output: str | None) -> int:
    """Run the stored model on INPUTS (.npy, float32 [N, ...], as its preprocessing makes them), self-test first."""
    import io

    import numpy as np

    from qunlearn_export import device
    from qunlearn_export.files import write_atomic
    from qunlearn_export.runtime import read_bytes

    try:
        x = np.load(io.BytesIO(read_bytes(inputs, max_bytes=MAX_INPUT)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        raise ArtefactError(f"{inputs} is not a .npy array.", remedy="Save it with numpy.save.") from err
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim < 2 or not len(x):
        raise ArtefactError(f"{inputs} is not float32 [N, ...].", remedy="Save a batch as float32.")

    def work() -> tuple[dict[str, Any], str]:
        active, logits = device.predict(_store(folder), x)
        if output is not None:
            buffer = io.BytesIO()
            np.save(buffer, logits)
            write_atomic(output, buffer.getvalue())
        classes = [int(i) for i in logits.argmax(1)]
        value = {"sequence": active.sequence, "classes": classes, "logits": logits.tolist()}
        return value, "\n".join(map(str, classes))

    return _answer(settings, work)


@common.command("rollback-check", example="qunlearn device rollback-check old.qulb --store /var/lib/model")
@click.argument("bundles", type=click.Path(), nargs=-1)
@_STORE
def rollback_check(settings: Settings, bundles: tuple[str, ...], folder: str) -> int:
    """Can an older model come back? Looks at counter and slots, and offers old BUNDLES; exit 3 if one would install."""
    from qunlearn_export import device

    def work() -> tuple[dict[str, Any], str]:
        found = device.rollback_check(_store(folder), bundles)
        value = {
            "fine": not found.problems,
            "sequence": found.sequence,
            "counter": found.counter,
            "problems": list(found.problems),
            "codes": dict(found.codes),
        }
        head = (
            "no older model can come back"
            if not found.problems
            else "an older model may come back, or the store is not settled"
        )
        refused = [f"  {name}: refused ({code})" for name, code in found.codes.items() if code]
        return value, "\n".join([head, *(f"  {p}" for p in found.problems), *refused])

    return _answer(settings, work, failed=lambda value: not value["fine"])


def _answer(settings: Settings, work: Any, failed: Any = lambda value: False) -> int:
    """Run ``work``; a refusal with a device's return code is printed with it, then raised on for its exit code."""
    from qunlearn_export.device import code_of

    try:
        value, text = work()
    except QunlearnError as err:
        code = code_of(err)
        if code is None:
            raise
        if settings.json:
            settings.result({"code": code, "error": str(err)}, "")
        settings.say(f"device code {code}")
        raise
    settings.result({"code": 0, **value}, text)
    return 3 if failed(value) else 0


for _one in (init, verify, apply, run, rollback_check):
    command.add_command(_one)
