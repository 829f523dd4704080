#!/bin/sh
# Step 4: the self-test on this computer, and on the emulated board where compiler and emulator are there.
set -eu
. "$(dirname "$0")/settings.sh"
make -s -C "$OUT/firmware" selftest || fail "the self-test fails on this computer"
for tool in arm-none-eabi-gcc qemu-system-arm; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        [ "$REQUIRE_BOARD" = 1 ] && fail "$tool not found: apt-get install gcc-arm-none-eabi qemu-system-arm" 5
        echo "NOT RUN: the self-test on $BOARD, $tool not found (REQUIRE_BOARD=1 makes this a failure)"
        exit 0
    fi
done
program=
[ "$OTA" = none ] || program=PROGRAM=selftest
# shellcheck disable=SC2086
make -s -C "$OUT/firmware" BOARD="$BOARD" $program && make -s -C "$OUT/firmware" BOARD="$BOARD" $program qemu ||
    fail "the self-test fails on $BOARD"
