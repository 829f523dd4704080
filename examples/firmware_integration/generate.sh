#!/bin/sh
# Step 1: the C sources, checked against the integer rule on this computer, into OUT/firmware.
set -eu
. "$(dirname "$0")/settings.sh"
mkdir -p "$OUT"
cp "$MODEL" "$OUT/model.onnx" || fail "no model $MODEL" 2
# shellcheck disable=SC2046
"$python" -m qunlearn firmware "$OUT/model.onnx" -o "$OUT/firmware" --board "$BOARD" --ota "$OTA" --trust "$TRUST" \
    $(test_key) --device-class "$DEVICE_CLASS" >"$OUT/generate.txt" || fail "no firmware was generated from $MODEL" $?
echo "generated: $OUT/firmware"
