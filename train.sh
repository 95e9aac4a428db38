#!/usr/bin/env bash
# Trains a model: every option of `python -m xlsr_transducer.train` works here.
# Relative paths count from the recipe's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
  . .venv/bin/activate
fi
exec python3 -m xlsr_transducer.train "$@"
