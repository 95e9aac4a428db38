#!/usr/bin/env bash
# Stage 5: trains a model. All options: ./train.sh --help
# Relative paths begin where the user stands.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
if [[ $here == "${BASH_SOURCE[0]}" ]]; then here=.; fi
. "$here/local/hold_interrupts.sh"
. "$here/local/activate.sh"
exec python -m xlsr_transducer.train "$@"
