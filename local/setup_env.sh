# Makes the Python environment ready and puts it first on PATH. To be sourced by bash:
#
#     . local/setup_env.sh                  the default environment
#     SETUP_ENV=k2 . local/setup_env.sh     the one with the real k2, Python 3.10, in .venv-k2
#
# In an active virtual environment it installs there what is missing, and nothing else. Without
# one it makes .venv with the versions of requirements-lock.txt. When all is there it installs
# nothing; an interrupted installation is made good by the next run. On failure it says why in
# one line and returns 2; for k2, it returns 3 without a word where there is no Python 3.10.

_setup_say() { echo "$(date '+%Y-%m-%d %H:%M:%S') (setup) $*" >&2; }
_setup_fail() { echo "error: $*" >&2; return 2; }

# _setup_version PYTHON: prints its version as 3.11, or nothing if it does not run.
_setup_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# _setup_at_least VERSION MINIMUM
_setup_at_least() {
  local major=${1%%.*} minor=${1#*.}
  (( major > ${2%%.*} || (major == ${2%%.*} && minor >= ${2#*.}) ))
}

# _setup_find_python MINIMUM NAME...: prints the first of the names that is new enough.
_setup_find_python() {
  local minimum=$1 name version
  shift
  for name in "$@"; do
    version=$(_setup_version "$name")
    if [[ -n $version ]] && _setup_at_least "$version" "$minimum"; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

# _setup_pip PYTHON LOG ARGUMENT...: pip install, one plain line if it fails.
_setup_pip() {
  local python=$1 log=$2 reason
  shift 2
  if "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
      "$@" >"$log" 2>&1; then
    return 0
  fi
  if grep -qiE 'no space left' "$log"; then
    reason="the disk is full"
  elif grep -qiE 'no module named pip' "$log"; then
    reason="this Python has no pip (python -m ensurepip installs it)"
  elif grep -qiE 'connection|timed out|timeout|name resolution|not known|proxy|ssl|retr(y|ies)|versions: none' \
      "$log"; then
    reason="a download failed (is the network up?)"
  else
    reason=$(grep -iE '^error' "$log" | tail -n 1 || true)
  fi
  _setup_fail "packages could not be installed: ${reason:-see the log}; the next run continues;" \
    "pip's output is in $log"
}

# _setup_active ROOT PREFIX: completes the environment that the user has activated.
_setup_active() {
  local root=$1 prefix=$2 python=$2/bin/python version missing log
  version=$(_setup_version "$python")
  if ! _setup_at_least "${version:-0.0}" 3.11; then
    _setup_fail "the active environment $prefix has Python ${version:-?}, 3.11 or newer is" \
      "needed: deactivate it, and this script makes its own"
    return
  fi
  missing=$("$python" "$root/local/missing_packages.py" "$root/requirements.txt" \
    "$root/requirements-lock.txt") || { _setup_fail "$python has no pip"; return; }
  if [[ -n $missing ]]; then
    _setup_say "installing into the active environment $prefix:" $missing
    log=$(mktemp "${TMPDIR:-/tmp}/setup-XXXXXX") || return
    _setup_pip "$python" "$log" $missing || return
    rm -f "$log"
  fi
}

# _setup_make VENV MINIMUM NAME...: a new, empty environment, marked as unfinished.
_setup_make() {
  local venv=$1 minimum=$2 python version
  shift 2
  if ! python=$(_setup_find_python "$minimum" "$@"); then
    version=$(_setup_version "$1")
    _setup_fail "Python $minimum or newer is needed, and ${version:+only }${version:-none} was" \
      "found: install it, or put it first on PATH"
    return
  fi
  _setup_say "making $venv with $python ($(_setup_version "$python"))"
  rm -rf "$venv" && mkdir -p "$venv" && : >"$venv/unfinished" || return
  if ! "$python" -m venv "$venv" >"$venv/setup.log" 2>&1; then
    _setup_fail "$python cannot make virtual environments (on Debian and Ubuntu: apt install" \
      "python3-venv); details in $venv/setup.log"
  fi
}

# _setup_own VENV LOCK MINIMUM NAME...: makes or completes our own environment.
_setup_own() {
  local venv=$1 lock=$2 minimum=$3 version
  # The copy of the lock file is written last: where it differs, something is to be installed.
  local stamp=$venv/installed.txt
  version=$(_setup_version "$venv/bin/python")
  if [[ -n $version && -f $stamp && "$(<"$stamp")" == "$(<"$lock")" ]]; then
    return 0
  fi
  # A killed pip may leave half a package that it takes for a whole one: start afresh.
  if [[ -e $venv/unfinished || -z $version ]]; then
    _setup_make "$venv" "${@:3}" || return
  elif ! _setup_at_least "$version" "$minimum"; then
    _setup_fail "$venv has Python $version, $minimum or newer is needed: remove it"
    return
  fi
  _setup_say "installing $(grep -cE '^[A-Za-z]' "$lock") packages into $venv (once: some GB, some minutes)"
  : >"$venv/unfinished"
  if ! _setup_pip "$venv/bin/python" "$venv/setup.log" -r "$lock"; then
    rm -f "$venv/unfinished"
    return 2
  fi
  if [[ -f ${lock%.txt}-wheel.txt ]]; then
    _setup_pip "$venv/bin/python" "$venv/setup.log" --no-deps --force-reinstall \
      -r "${lock%.txt}-wheel.txt" || return
  fi
  cp "$lock" "$stamp" && rm -f "$venv/unfinished" || return
  _setup_say "$venv is ready"
}

_setup_environment() {
  local root prefix=${VIRTUAL_ENV:-} venv
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return
  if [[ ${SETUP_ENV:-default} == k2 ]]; then
    venv=$root/.venv-k2
    # pyenv's python3.10 runs only where it is switched on; the real one lies here.
    local names=(python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10*/bin/python3.10)
    if [[ ! -d $venv ]] && ! _setup_find_python 3.10 "${names[@]}" >/dev/null; then
      return 3
    fi
    _setup_own "$venv" "$root/requirements-k2.txt" 3.10 "${names[@]}" || return
  else
    # conda's base is always active for many users: not an environment they chose for this.
    if [[ -z $prefix && -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-base} != base ]]; then
      prefix=$CONDA_PREFIX
    fi
    if [[ -n $prefix && -x $prefix/bin/python && $prefix != "$root/.venv" ]]; then
      _setup_active "$root" "$prefix"
      return
    fi
    venv=$root/.venv
    _setup_own "$venv" "$root/requirements-lock.txt" 3.11 \
      python3 python3.13 python3.12 python3.11 || return
  fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
  unset PYTHONHOME
  hash -r
}

_setup_environment
