#!/bin/sh
# Installs the Arm cross compiler and the emulator that the firmware tests use, where apt may be used (root, or sudo
# without a password). Otherwise says loudly what will not be run; with QUNLEARN_REQUIRE_CROSS=1 that is an error.
missing() {
    for tool in arm-none-eabi-gcc arm-none-eabi-objdump qemu-system-arm gcc; do
        command -v "$tool" >/dev/null 2>&1 || printf '%s ' "$tool"
    done
}

packages="gcc-arm-none-eabi binutils-arm-none-eabi qemu-system-arm gcc libc6-dev"
absent=$(missing)
[ -z "$absent" ] && exit 0

if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo"
    else
        as_root="no"
    fi
    if [ "$as_root" != no ]; then
        echo "installing $packages"
        install="env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages"
        $as_root $install >/dev/null 2>&1 ||
            { $as_root apt-get update -q >/dev/null 2>&1 && $as_root $install >/dev/null 2>&1; } || true
    fi
fi

absent=$(missing)
[ -z "$absent" ] && exit 0
echo "=============================================================================="
echo "NOT INSTALLED: $absent"
echo "Firmware tests that need them will be SKIPPED. Install them:"
echo "  apt-get install --no-install-recommends $packages"
echo "=============================================================================="
[ "$QUNLEARN_REQUIRE_CROSS" = 1 ] && exit 1
exit 0
