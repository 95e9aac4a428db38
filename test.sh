#!/usr/bin/env bash
# Sets up the environment (once), then runs the tests. Arguments go to pytest:
#
#     ./test.sh                 all tests
#     ./test.sh -k golden       some of them
#     ./test.sh --k2            all tests in the environment with the real k2 (Python 3.10)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ ${1:-} == --k2 ]]; then
  shift
  status=0
  SETUP_ENV=k2 . local/setup_env.sh || status=$?
  if ((status == 3)); then
    echo "no Python 3.10 here: the tests in the environment with the real k2 were not run"
    exit 0
  elif ((status)); then
    exit "$status"
  fi
  # Without it, its tests would be skipped one by one.
  python -c 'import k2' || { echo "error: k2 does not import in $VIRTUAL_ENV: remove that folder" >&2; exit 2; }
else
  . local/setup_env.sh
fi
exec python -m pytest "$@"
