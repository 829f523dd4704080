#!/bin/sh
# Step 3: the bundle is signed by our key, its update turns the model in the field into the audited one, in Python and in
# C, and no audit is worse than VERDICT. The files that are built are those that were generated.
set -eu
. "$(dirname "$0")/settings.sh"
(cd "$OUT/firmware" && sha256sum --quiet -c SHA256SUMS) || fail "files of $OUT/firmware were changed after they were generated" 3
# shellcheck disable=SC2046
"$python" -m qunlearn verify "$BUNDLE" --trust "$TRUST" $(test_key) --base "$MODEL" --allow-verdict "$VERDICT" \
    >"$OUT/verify.txt" || fail "the bundle $BUNDLE does not hold; see $OUT/verify.txt" $?
echo "verified: $BUNDLE"
