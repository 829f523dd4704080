#!/bin/sh
# A keyword spotter on an emulated Cortex-M4, from the int8 file to a signed update: sh run.sh NEW_FOLDER
# MODEL, BUNDLE and SOUND name other files; PYTHON another interpreter, with the base install.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: sh run.sh NEW_FOLDER" >&2; exit 2; }
python=${PYTHON:-python3}
board=mps2-an386
mkdir -p "$1"
out=$(cd "$1" && pwd)
fw=$out/firmware
run=$fw/build/$board

for tool in arm-none-eabi-gcc qemu-system-arm make; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "$tool not found: apt-get install --no-install-recommends gcc-arm-none-eabi qemu-system-arm make" >&2
        exit 5
    }
done

echo "== generate, compare with the integer rule on this computer"
cp "${MODEL:-$here/../signed_update/base.onnx}" "$out/spotter.onnx"
"$python" -m qunlearn firmware "$out/spotter.onnx" -o "$fw" --board "$board" --ota ab \
    --trust TEST --allow-test-key --device-class 7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10 >/dev/null
sed -n '/^- /p' "$fw/report.md"

echo "== self-test of the generated weights on the board"
make -s -C "$fw" BOARD=$board PROGRAM=selftest
make -s -C "$fw" BOARD=$board PROGRAM=selftest qemu

echo "== build the application"
"$python" "$here/prepare.py" "$out/spotter.onnx" "${BUNDLE:-$here/../signed_update/demo.qulb}" \
    "${SOUND:-$here/../on_device_onnx/seven.wav}" "$out"
cp "$here/app.c" "$here/files.c" "$here/files.h" "$out/settings.h" "$out/key.h" "$fw"
app() { make -s -C "$fw" BOARD=$board MAIN="app.c files.c qul_flash_sim.c" "$@"; }
app
arm-none-eabi-size "$run/fw.elf"
cp "$out/features.bin" "$run"

echo "== first start"
app qemu

echo "== an update arrives"
cp "$out/update.bin" "$run"
app qemu

echo "== the same update again"
text=$(app qemu 2>&1) || true
echo "$text"
case "$text" in
*"code 16, refused"*) ;;
*) echo "an old update was not refused for its sequence" >&2; exit 3 ;;
esac

echo "== a start after all that"
rm "$run/update.bin"
app qemu
echo "== done"
