#!/usr/bin/env bash
# Sets up the environment (once), then runs the tests on up to four cores:
#
#     ./test.sh                 all tests but the long ones
#     ./test.sh --fast          those that neither start programs or servers nor train
#     ./test.sh --long          the long ones, the whole demo among them
#     ./test.sh --k2            all but the long ones, with the real k2 (Python 3.10)
#     ./test.sh -k golden       some of them: further arguments go to pytest (-n 0: one process)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

environment=default
chosen="not long"
while (($#)); do
  case $1 in
    --k2) environment=k2 ;;
    --fast) chosen="not slow and not long" ;;
    --long) chosen=long ;;
    *) break ;;
  esac
  shift
done

status=0
SETUP_ENV=$environment . local/setup_env.sh || status=$?
if ((status == 3)); then
  echo "no Python 3.10 here: the tests in the environment with the real k2 were not run"
  exit 0
elif ((status)); then
  exit "$status"
fi
if [[ $environment == k2 ]]; then
  # Without it, its tests would be skipped one by one.
  python -c 'import k2' || { echo "error: k2 does not import in $VIRTUAL_ENV: remove that folder" >&2; exit 2; }
fi
# A file stays in one process, so that its tests share what they prepare.
exec python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "$chosen" "$@"
