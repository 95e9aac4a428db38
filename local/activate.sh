# Puts the environment that setup_env.sh made first on PATH, unless another one is active, and the
# recipe on Python's path: the caller's folder stays current, so that relative paths begin there, and
# a folder there that is called local, as icefall's recipes have it, is none of ours.
# Installs nothing. To be sourced by bash.
_activate_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$_activate_root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
  _activate_venv=$_activate_root/.venv
  if [[ -x $_activate_venv/bin/python ]]; then
    export VIRTUAL_ENV=$_activate_venv PATH=$_activate_venv/bin:$PATH
  fi
fi
if ! command -v python >/dev/null; then
  echo "error: no Python environment: run ./test.sh or ./demo.sh once, or activate yours" >&2
  return 2
fi
