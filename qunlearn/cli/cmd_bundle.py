"""``qunlearn bundle``: signed updates: build one, make keys, check a device's receipt."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings
from qunlearn.errors import ConfigError


@click.group("bundle", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Make and check signed updates: `build`, `keygen`, `receipt`."""


@common.command(
    "build",
    data=True,
    example="""
qunlearn bundle build runs/oeu --audit runs/audit --forget group=theo --key keys/release.pem \\
    --device-class 7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10 --sequence 2 --base-sequence 1 -o update.qulb
""",
)
@click.argument("run", metavar="RUN", type=click.Path())
@click.option("--audit", "audit_folder", required=True, type=click.Path(), help="Folder that `qunlearn audit` wrote.")
@click.option("--base", type=click.Path(), help="Base as run or ONNX file; default: the audit folder's.")
@click.option("--target", type=click.Path(), help="Target as run or ONNX file; default: the audit folder's.")
@click.option("--forget", required=True, help="The deletion request; the guard looks for its samples.")
@click.option("--data", "source", help="Where the data are; default: what RUN was trained on.")
@click.option("--key", envvar="QUNLEARN_SIGNING_KEY", help="Private key file, or TEST [env: QUNLEARN_SIGNING_KEY].")
@click.option(
    "--passphrase-file", envvar="QUNLEARN_PASSPHRASE_FILE", type=click.Path(), help="File with its passphrase."
)
@click.option("--signer", help="Command that signs: bytes on stdin, 64 bytes on stdout.")
@click.option("--public", type=click.Path(), help="Public key of --signer.")
@click.option("--allow-test-key", is_flag=True, help="Accept the published TEST key.")
@click.option("--device-class", required=True, help="UUID of the device class.")
@click.option("--sequence", required=True, type=click.IntRange(1, 2**32 - 1), help="Number of this update, rising.")
@click.option("--base-sequence", default=1, show_default=True, type=click.IntRange(0, 2**32 - 2), help="The base's.")
@click.option("--mode", type=click.Choice(["auto", "delta", "full"]), default="auto", show_default=True)
@click.option("--ota", type=click.Choice(["ab", "inplace"]), default="ab", show_default=True, help="How devices apply.")
@click.option("--delta-only", is_flag=True, help="Leave weights.bin out.")
@click.option("--with-onnx/--without-onnx", default=True, show_default=True, help="Carry model.onnx.")
@click.option("--allow-verdict", type=click.Choice(["pass", "inconclusive", "fail"]), default="pass", show_default=True)
@click.option("--salt", type=click.Path(), help="Key of the commitments; default: RUN/request.salt, made if absent.")
@click.option("--imgtool", "image", type=click.Path(), help="Also the weights as MCUboot image, here; needs imgtool.")
@click.option("--imgtool-key", type=click.Path(), help="MCUboot's private key for it; default: hashed, not signed.")
@click.option("--model-signing", "signature", type=click.Path(), help="Also a model-signing signature of model.onnx.")
@click.option("--model-signing-key", type=click.Path(), help="Elliptic-curve private key for it.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The bundle, such as update.qulb.")
def build(
    settings: Settings,
    run: str,
    audit_folder: str,
    base: str | None,
    target: str | None,
    forget: str,
    source: str | None,
    key: str | None,
    passphrase_file: str | None,
    signer: str | None,
    public: str | None,
    allow_test_key: bool,
    device_class: str,
    sequence: int,
    base_sequence: int,
    mode: str,
    ota: str,
    delta_only: bool,
    with_onnx: bool,
    allow_verdict: str,
    salt: str | None,
    image: str | None,
    imgtool_key: str | None,
    signature: str | None,
    model_signing_key: str | None,
    output: str,
) -> int:
    """Make a signed update from an audited unlearning run RUN: delta, manifest, evidence, bill of materials.

    Refused (exit 3) when results were measured on other files, a verdict is worse than allowed, or anything of a forget
    sample is found in it. The sequence has no default: it must rise with every update of a device class.
    """
    from qunlearn.cli import packing, wrapping
    from qunlearn_export import bundle, capplier, evidence

    try:
        device = UUID(device_class)
    except ValueError as err:
        raise ConfigError(f"--device-class {device_class!r} is no UUID.", remedy="Give the class's UUID.") from err
    hand = packing.signer(key, passphrase_file, signer, public, allow_test_key=allow_test_key)
    wraps = wrapping.Wraps(image=image, image_key=imgtool_key, signature=signature, signature_key=model_signing_key)
    wraps.check()
    folder = Path(audit_folder)
    audit = evidence.load(folder / "audit.json")
    if Path(output).is_dir():
        raise ConfigError(f"{output} is a folder.", remedy="Give a file name such as update.qulb.")
    settings.say("reading base and target")
    old = packing.model(base, folder, packing.BASES, "--base")
    new = packing.model(target, folder, packing.TARGETS, "--target")
    asked = packing.asked(settings, Path(run), source, forget, evidence.seed_of(audit))
    order = bundle.Order(
        base=old,
        target=new,
        audit=audit,
        method=packing.method(Path(run)),
        request=asked.canonical,
        samples=asked.samples,
        split=asked.split,
        salt=packing.salt(Path(salt) if salt is not None else Path(run) / packing.SALT),
        sequence=sequence,
        base_sequence=base_sequence,
        device=device,
        guard=asked.guard(old.graph, new.graph),
        mode=mode,
        in_place=ota == "inplace",
        delta_only=delta_only,
        with_onnx=with_onnx,
        allow=allow_verdict,
    )
    settings.say("building, comparing with generated C, signing, searching for forget samples")
    made = bundle.build(order, hand, epoch=packing.epoch(), applier=capplier.CApplier(), measure=packing.generated_c)
    extra = wraps.make(new, made, sequence)
    path = made.write(output)
    wrapped = wrapping.write(extra)
    value = {
        "bundle": str(path),
        "wrapped": wrapped,
        "kind": made.kind,
        "sizes": dict(made.sizes),
        "sequence": sequence,
        "verdict": made.manifest["predicate"]["verdict"],
        "warnings": list(made.warnings),
        "manifest": made.manifest,
    }
    lines = [packing.built_text(made, path), *(f"{name}: {size:,} bytes" for name, size in wrapped.items())]
    settings.result(value, "\n".join(lines))
    return 0


@common.command("keygen", example="qunlearn bundle keygen release -o keys")
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="Folder for the three files.")
@click.option("--passphrase-file", envvar="QUNLEARN_PASSPHRASE_FILE", type=click.Path(), help="File with a passphrase.")
@click.option("--no-passphrase", is_flag=True, help="Store the private key unencrypted.")
def keygen(settings: Settings, name: str, output: str, passphrase_file: str | None, no_passphrase: bool) -> int:
    """Make an Ed25519 key pair: NAME.pem (private, mode 0600), NAME.pub.pem, and NAME.h for firmware."""
    from qunlearn.cli import packing
    from qunlearn_export import keys

    if no_passphrase and passphrase_file is not None:
        raise ConfigError("--no-passphrase and --passphrase-file exclude each other.", remedy="Give one of them.")
    if name in ("", ".", "..") or not all(c.isalnum() or c in "._-" for c in name) or name == "TEST":
        raise ConfigError(f"{name!r} is no name for a key.", remedy="Use letters, digits, dots, dashes, underscores.")
    phrase = None if no_passphrase else packing.passphrase(passphrase_file, confirm=True)
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot make the folder {folder}: {err.strerror}.", remedy="Choose another.") from err
    private, public, header = keys.generate(folder, name, phrase)
    key_id = keys.key_digest(keys.load_public(public))[:8].hex()
    value = {"private": str(private), "public": str(public), "header": str(header), "key_id": key_id}
    lines = [f"private key {private} (keep it secret, keep a copy)", f"public key  {public}", f"C header    {header}"]
    settings.result(value, "\n".join([*lines, f"key id      {key_id}"]))
    return 0


@common.command(
    "receipt", example="qunlearn bundle receipt receipt.bin --bundle update.qulb --trust keys/release.pub.pem"
)
@click.argument("file", type=click.Path())
@click.option("--bundle", "bundle_file", required=True, type=click.Path(), help="The bundle that was installed.")
@click.option("--trust", multiple=True, required=True, help="Public key of the bundle's maker; repeatable.")
@click.option("--allow-test-key", is_flag=True, help="Accept the published TEST key.")
@click.option("--mac-key", type=click.Path(), help="File with the device's HMAC-SHA-256 key.")
def receipt(
    settings: Settings, file: str, bundle_file: str, trust: tuple[str, ...], allow_test_key: bool, mac_key: str | None
) -> int:
    """Does a device's receipt say that it runs the target of this bundle and erased the old slot? Exit 3 if not."""
    from qunlearn_export import keys, verify
    from qunlearn_export.receipt import READ_BACK, Receipt
    from qunlearn_export.runtime import read_bytes

    opened = verify.open_bundle(bundle_file, keys.trusted(trust, allow_test_key=allow_test_key))
    found = Receipt.from_bytes(read_bytes(file, max_bytes=4096))
    origin = found.authenticity(None if mac_key is None else read_bytes(mac_key, max_bytes=4096))
    bad = found.problems(opened) + (["the authentication code is forged or absent"] if origin == "forged" else [])
    value = {
        "fits": not bad,
        "problems": bad,
        "authenticity": origin,
        "code": found.code,
        "sequence": found.sequence,
        "counter": found.counter,
        "pages_erased": found.erased,
        "old_slot": READ_BACK[found.read_back],
    }
    head = "the device runs the bundle's target" if not bad else "the receipt does not fit the bundle"
    lines = [f"{head} (origin of the receipt: {origin})", *(f"  {b}" for b in bad)]
    settings.result(value, "\n".join(lines))
    return 3 if bad else 0


for _one in (build, keygen, receipt):
    command.add_command(_one)
