#!/bin/sh
# All steps, in the order in which a failure costs least. The first one that fails ends the build with its message.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for step in generate size verify selftest; do
    echo "== $step"
    sh "$here/$step.sh"
done
echo "== passed"
