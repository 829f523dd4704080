#!/bin/sh
# Step 2: the size budget.
set -eu
. "$(dirname "$0")/settings.sh"
"$python" "$here/budget.py" "$OUT/firmware/report.json" "$BUDGET" || fail "the firmware does not keep its size budget" $?
