#!/usr/bin/env bash
# Stage 3: stores features of XLSR at a cut. All options: ./extract_features.sh --help
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
if [[ $here == "${BASH_SOURCE[0]}" ]]; then here=.; fi
. "$here/local/hold_interrupts.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$root/local/activate.sh"
# The caller's folder stays current, so that relative paths mean what they say.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m local.extract_features "$@"
