#!/usr/bin/env bash
# From lists to features and statistics, by numbered stages: ./prepare.sh --help
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
if [[ $here == "${BASH_SOURCE[0]}" ]]; then here=.; fi
. "$here/local/hold_interrupts.sh"

usage() {
  cat <<'END'
Usage: ./prepare.sh --train-list FILE --val-list FILE [--test-list FILE ...] [options]
       ./prepare.sh --train-list et=FILE --train-list lv=FILE --val-list et=FILE ... [options]
       ./prepare.sh --test-list FILE ... [options]

Lists hold one `path|text|speaker` or `path|start|end|text|speaker` a line, or are corpora of other
forms (docs/corpora.md). Without lists, the demo corpus is made and used. Test
lists alone make test sets, in a new data folder or beside what one holds. Relative paths of options
begin where you stand, those in a list in its folder.

  stage 0   demo corpus (only without lists)      DATA/demo/
  stage 1   lists to recordings and supervisions  DATA/manifests/{recordings,supervisions,rejected}_*
  stage 2   text, and BPE model or letters        DATA/manifests/cuts_*, DATA/lang_{bpe_N,char}/
  stage 3   features                              DATA/features/ (by ./extract_features.sh)
  stage 4   checks and statistics                 DATA/{statistics.{txt,png},flagged_SPLIT.tsv}
  stage 5   n-gram model, only on demand          DATA/lang_bpe_N/ngram_3.arpa
  stage 6   neural language model, on demand      DATA/lang_bpe_N/lm/
  stage 7   graph of words, on demand, needs k2   DATA/lang_bpe_N/{word_ngram_3.arpa,LG.pt}

  --stage N, --stop-stage M   the stages to run (default: 0 and 4; --stage 5, 6 or 7 runs that one)
  --train-list, --val-list, --test-list [LANG=]FILE   each may be given several times
  --audio-root DIR       relative paths in the lists start here (default: the list's folder)
  --channel N|each       of recordings with several (default: what the corpus names, or else 0)
  --columns ROLE=NAME,...   of a Hugging Face data set, where they cannot be guessed
  --data-dir DIR         where everything is written (default: data)
  --unit bpe|char|label  tokens: BPE, in DATA/lang_bpe_N (default), letters, in DATA/lang_char, or
                         whole texts, the labels of a classifier, as they are, in DATA/lang_label
  --vocab-size N         BPE tokens (default: 2500)
  --language-token 1|0   1: a token of each training language, for train.sh --language-token 1
                         (default: as it was when stage 2 ran before, or 0)
  --lang CODE            language of lists without LANG=, and of --lm-text (default: et)
  --max-rejected P       percent of a list's lines that may be unusable (default: 1)
  --case lower|keep      (default: lower; --lower-case 1|0 is the same)
  --lm-text FILE         text of the language models, a sentence a line (default: training text)
  --ngram-order N        words of its longest n-grams (default: 3)
  --punctuation in-word|keep|drop   in-word (default): only ' and - inside words are kept
  --normalizer none|auto|CODE|FILE.py   spells figures and abbreviations out (default: none);
                         auto: by the language of each text
  --unicode nfc|nfkc     (default: nfc)
  --audio-checks HOURS   audio that stage 4 reads, by --num-jobs processes: an even sample; -1: all
                         of it, 0: none (default: 50)
  --max-silence SECONDS  before or after the speech, more is flagged (default: 2)
Handed on to ./extract_features.sh (see its --help):
  --xlsr NAME_OR_DIR_OR_PT, --cut, --normalize, --num-jobs, --single-process, --device,
  --extractor, --chunk-size, --left-context-chunks, --attention-sink-size, --max-duration,
  --subset, --name
END
}

log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}) $*"
}

fail() {
  echo "error: $*" >&2
  exit 2
}

root=$(cd "$here" && pwd)

stage=0
stop_stage=
train_lists=()
val_lists=()
test_lists=()
only_tests=()
audio_root=
corpus_options=()
data_dir=data
unit=bpe
vocab_size=2500
lang=et
max_rejected=1
token_options=()
text_options=()
lm_text=()
ngram_options=()
feature_options=()
check_options=()

stage_number() {
  [[ $2 =~ ^[0-7]$ ]] || fail "$1 $2: must be a stage, from 0 to 7"
  echo "$2"
}

set_option() {
  local name=$1 value=$2
  [[ -n $value ]] || fail "$name needs a value"
  case $name in
    --stage) stage=$(stage_number "$name" "$value") ;;
    --stop-stage) stop_stage=$(stage_number "$name" "$value") ;;
    --vocab-size)  # names a folder, so it has one spelling
      [[ $value =~ ^[1-9][0-9]*$ ]] || fail "$name $value: must be a whole number above 0"
      vocab_size=$value ;;
    --unit)
      [[ $value =~ ^(bpe|char|label)$ ]] || fail "$name $value: must be bpe, char or label"
      unit=$value ;;
    --train-list) train_lists+=("$name" "$value") ;;
    --val-list) val_lists+=("$name" "$value") ;;
    --test-list) test_lists+=("$name" "$value") ;;
    --language-token) token_options+=("$name" "$value") ;;
    --audio-root) audio_root=$value ;;
    --channel | --columns) corpus_options+=("$name" "$value") ;;
    --data-dir) data_dir=$value ;;
    --lang) lang=$value ;;
    --max-rejected) max_rejected=$value ;;
    --lm-text) lm_text=("$name" "$value") ;;
    --ngram-order) ngram_options+=("$name" "$value") ;;
    --case | --lower-case | --punctuation | --unicode | --normalizer) text_options+=("$name" "$value") ;;
    --audio-checks | --max-silence) check_options+=("$name" "$value") ;;
    --num-jobs) feature_options+=("$name" "$value"); check_options+=("$name" "$value") ;;
    --xlsr | --cut | --normalize | --device | --extractor | --chunk-size | --subset | \
      --left-context-chunks | --attention-sink-size | --max-duration | --name)
      feature_options+=("$name" "$value") ;;
    *) fail "unknown option $name (see ./prepare.sh --help)" ;;
  esac
}

while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --single-process) feature_options+=("$1"); shift ;;
    --*=*) set_option "${1%%=*}" "${1#*=}"; shift ;;
    --*)
      set_option "$1" "${2-1}"  # names an unknown option before a missing value
      if (($# < 2)) || [[ $2 == --* ]]; then fail "$1 needs a value"; fi
      shift 2 ;;
    *) fail "unexpected argument '$1' (see ./prepare.sh --help)" ;;
  esac
done

stop_stage=${stop_stage:-$((stage > 4 ? stage : 4))}
((stage <= stop_stage)) || fail "--stage $stage comes after --stop-stage $stop_stage"

lang_dir=$data_dir/lang_bpe_$vocab_size
if [[ $unit != bpe ]]; then lang_dir=$data_dir/lang_$unit; fi
if [[ $unit == label ]]; then
  ((stop_stage <= 4)) || fail "--unit label: labels have no language model, so no stage $stop_stage"
  ((!${#token_options[@]})) || fail "--language-token: labels have no tokens of languages"
fi

. "$root/local/activate.sh"

# run COMMAND...: a program of a stage. It answers Ctrl-C itself; then no other is started.
run() {
  stop_if_interrupted
  "$@" || exit "$?"
  stop_if_interrupted
}

runs() { ((stage <= $1 && stop_stage >= $1)); }

# One at a time in a data folder. The system frees the lock when the last program of this one ends.
lock_data() {
  if runs 0 || runs 1; then mkdir -p "$data_dir" || exit 2; fi
  if [[ -z ${has_lock:-} && -w $data_dir ]] && command -v flock >/dev/null; then
    exec 9>>"$data_dir/.lock"
    flock -n 9 || fail "another prepare.sh is working in $data_dir: wait for it"
    has_lock=1
  fi
}

if ((!${#train_lists[@]} && !${#val_lists[@]} && !${#test_lists[@]})); then
  demo=$data_dir/demo
  train_lists=(--train-list "$demo/train.txt")
  val_lists=(--val-list "$demo/val.txt")
  test_lists=(--test-list "$demo/test_seen.txt" --test-list "$demo/test_unseen.txt")
  if runs 0; then
    if [[ -f $demo/test_unseen.txt ]]; then  # written last
      log "Stage 0: the demo corpus is there already, in $demo"
    else
      log "Stage 0: making the demo corpus in $demo"
      lock_data
      run python -m local.demo.make_corpus --out-dir "$demo"
    fi
  elif runs 1 && [[ ! -f $demo/train.txt ]]; then
    fail "no lists: give --train-list and --val-list, or begin with --stage 0 for the demo corpus"
  fi
elif ((!${#train_lists[@]} && !${#val_lists[@]})); then
  only_tests=(--only-tests)
elif ((!${#train_lists[@]} || !${#val_lists[@]})); then
  fail "--train-list and --val-list come together"
fi

lock_data

if runs 1; then
  log "Stage 1: lists to manifests in $data_dir/manifests"
  run python -m local.prepare_manifests \
    ${train_lists[@]+"${train_lists[@]}"} ${val_lists[@]+"${val_lists[@]}"} \
    ${test_lists[@]+"${test_lists[@]}"} \
    ${audio_root:+--audio-root "$audio_root"} ${corpus_options[@]+"${corpus_options[@]}"} \
    --data-dir "$data_dir" --lang "$lang" --max-rejected "$max_rejected"
fi

if runs 2 && [[ $unit == label ]]; then
  log "Stage 2: labels in $lang_dir"
  run python -m local.prepare_labels --data-dir "$data_dir" ${only_tests[@]+"${only_tests[@]}"}
elif runs 2; then
  log "Stage 2: text and tokens in $lang_dir"
  run python -m local.prepare_text --data-dir "$data_dir" --lang "$lang" \
    --max-rejected "$max_rejected" ${only_tests[@]+"${only_tests[@]}"} \
    ${text_options[@]+"${text_options[@]}"}
  if ((!${#only_tests[@]})); then
    run python -m local.prepare_lang --data-dir "$data_dir" --unit "$unit" \
      --vocab-size "$vocab_size" ${token_options[@]+"${token_options[@]}"}
  fi
fi

if runs 3; then
  log "Stage 3: features in $data_dir/features"
  run "$root/extract_features.sh" --data-dir "$data_dir" ${feature_options[@]+"${feature_options[@]}"}
fi

if runs 4; then
  log "Stage 4: checks and statistics in $data_dir/statistics.txt"
  lang_options=()
  if [[ -d $lang_dir ]]; then
    lang_options=(--lang-dir "$lang_dir")
  else
    log "tokens are not counted: there is no $lang_dir"
  fi
  run python -m local.validate_manifests --data-dir "$data_dir" \
    ${lang_options[@]+"${lang_options[@]}"} ${check_options[@]+"${check_options[@]}"}
fi

if runs 5; then
  log "Stage 5: n-gram model in $lang_dir"
  run python -m local.make_ngram --data-dir "$data_dir" --lang "$lang" \
    --lang-dir "$lang_dir" \
    ${text_options[@]+"${text_options[@]}"} ${lm_text[@]+"${lm_text[@]}"} \
    ${ngram_options[@]+"${ngram_options[@]}"}
fi

if runs 6; then
  log "Stage 6: neural language model in $lang_dir/lm"
  run python -m xlsr_transducer.train_lm --data-dir "$data_dir" --lang "$lang" \
    --lang-dir "$lang_dir" --exp-dir "$lang_dir/lm" \
    ${text_options[@]+"${text_options[@]}"} ${lm_text[@]+"${lm_text[@]}"}
fi

if runs 7; then
  log "Stage 7: graph of words in $lang_dir"
  run python -m local.make_ngram --unit word --data-dir "$data_dir" --lang "$lang" \
    --lang-dir "$lang_dir" \
    ${text_options[@]+"${text_options[@]}"} ${lm_text[@]+"${lm_text[@]}"} \
    ${ngram_options[@]+"${ngram_options[@]}"}
  run python -m local.make_lg --lang-dir "$lang_dir" \
    ${ngram_options[@]+"${ngram_options[@]}"}
fi
