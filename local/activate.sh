# Puts the environment that setup_env.sh made first on PATH, unless another one is active.
# Installs nothing. To be sourced by bash.
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
  _activate_venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv
  if [[ -x $_activate_venv/bin/python ]]; then
    export VIRTUAL_ENV=$_activate_venv PATH=$_activate_venv/bin:$PATH
  fi
fi
if ! command -v python >/dev/null; then
  echo "error: no Python environment: run ./test.sh or ./demo.sh once, or activate yours" >&2
  return 2
fi
