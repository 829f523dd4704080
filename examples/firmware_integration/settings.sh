# What a firmware team sets once; every line can be overridden by the environment (MODEL=... sh ci.sh).
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
MODEL=${MODEL:-$here/../signed_update/base.onnx}       # the int8 file of the release that runs in the field
BUNDLE=${BUNDLE:-$here/../signed_update/demo.qulb}     # the update that is to ship
TRUST=${TRUST:-TEST}                                   # public key (PEM) of whoever signs; TEST: the demo's, for trying
VERDICT=${VERDICT:-inconclusive}                       # worst verdict of the bundle's audits that may ship; default pass
DEVICE_CLASS=${DEVICE_CLASS:-7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10}
BOARD=${BOARD:-mps2-an386}
OTA=${OTA:-ab}
OUT=${OUT:-build}                                      # new folder for everything that is made
BUDGET=${BUDGET:-$here/budget.json}                    # bytes, see budget.py
REQUIRE_BOARD=${REQUIRE_BOARD:-0}                      # 1: fail where cross compiler or emulator is absent

fail() {
    echo "FAIL: $1" >&2
    exit "${2:-1}"
}
test_key() { [ "$TRUST" = TEST ] && echo --allow-test-key || true; }
