#!/usr/bin/env bash
# Stage 3: stores features of XLSR at a cut. All options: ./extract_features.sh --help
# Relative paths begin where the user stands.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
if [[ $here == "${BASH_SOURCE[0]}" ]]; then here=.; fi
. "$here/local/hold_interrupts.sh"
. "$here/local/activate.sh"
exec python -m local.extract_features "$@"
