#!/usr/bin/env bash
# Stage 5: trains a model. All options: ./train.sh --help. Paths count from the recipe's folder.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
if [[ $here == "${BASH_SOURCE[0]}" ]]; then here=.; fi
. "$here/local/hold_interrupts.sh"
cd "$(dirname "${BASH_SOURCE[0]}")"
. local/activate.sh
exec python -m xlsr_transducer.train "$@"
