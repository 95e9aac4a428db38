# Holds Ctrl-C back until a program can answer it: a shell may lose it in $(...), and Python, while
# it starts, answers with a traceback. To be sourced by bash, first; where the system can hold
# signals back, it starts the script anew.
if [[ -z ${INTERRUPTS_ARE_HELD:-} ]] && env --block-signal=INT true 2>/dev/null; then
  INTERRUPTS_ARE_HELD=1 exec env --block-signal=INT "$BASH" "${BASH_SOURCE[1]}" "$@"
fi
# Not before: bash 5.2 may loop for ever if a trapped Ctrl-C comes while it waits for a program.
trap 'echo interrupted >&2; exit 130' INT

# stop_if_interrupted: ends the script if Ctrl-C is being held back.
stop_if_interrupted() {
  local name value
  [[ -r /proc/$$/status ]] || return 0
  while read -r name value; do
    if [[ $name == ShdPnd: ]] && ((16#$value & 2)); then
      echo interrupted >&2
      exit 130
    fi
  done </proc/$$/status
}
