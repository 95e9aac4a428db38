#!/usr/bin/env bash
# The whole recipe on a small corpus that it synthesizes: ./demo.sh
#
# Sets up the environment (once), makes the corpus and a toy network in XLSR's place, stores features,
# trains a full-context and a streaming model, ends with tables of word error rates, and exports.
# What is done already is not done again; remove data/demo_corpus and exp/demo to begin anew.
#
#     ./demo.sh --serve    opens the streaming model to a browser, after making it if there is none;
#                          further arguments go to xlsr_transducer.serve
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ ${1:---serve} != --serve ]]; then
  echo "error: $1: ./demo.sh takes no argument but --serve" >&2
  exit 2
fi
. local/setup_env.sh

# The networks are tiny: one thread is as fast as two, which leaves a core for what runs beside.
export OMP_NUM_THREADS=1
data=data/demo_corpus
exp=exp/demo
toy_xlsr=$exp/toy_xlsr
small=(--data-dir "$data" --encoder-dim 144 --decoder-dim 128 --joiner-dim 192 --ctc-loss-scale 0.3
  --warm-step 300 --dropout 0.15 --feature-dropout 0.1)
# Hotwords need beam search.
serve=(python -m xlsr_transducer.serve --exp-dir "$exp/streaming"
  --decoding-method modified_beam_search --reset-encoder 1 "${@:2}")
tests=(--data-dir "$data" --split test_seen,test_unseen)

log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') (demo) $*" >&2
}

# beside COMMAND...: starts it on the other core. show_beside waits for it and shows its output.
beside() {
  mkdir -p "$exp"
  "$@" >"$exp/beside.log" 2>&1 &
}
show_beside() {
  local status=0
  wait $! || status=$?
  cat "$exp/beside.log"
  rm "$exp/beside.log"
  return "$status"
}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

if (($#)) && [[ -f $exp/streaming/epoch-4.pt ]]; then
  exec "${serve[@]}"
fi

log "1. A toy network in XLSR's place: tiny, pre-trained on other sentences. Its figures say nothing about XLSR."
log "2. Beside it the corpus, manifests, text and BPE model"
[[ -f $data/lang_bpe_80/tokens.txt ]] ||
  beside ./prepare.sh --data-dir "$data" --vocab-size 80 --stage 0 --stop-stage 2
[[ -f $toy_xlsr/config.json ]] || python -m local.demo.make_toy_xlsr --out "$toy_xlsr"
[[ -z ${!:-} ]] || show_beside

log "3. Features of the toy network's last layer, and of its front end"
./extract_features.sh --data-dir "$data" --xlsr "$toy_xlsr" --cut last --num-jobs 2
./extract_features.sh --data-dir "$data" --xlsr "$toy_xlsr" --cut frontend --num-jobs 2
./prepare.sh --data-dir "$data" --vocab-size 80 --stage 4

log "4. A full-context model on the frozen features of the last layer"
./train.sh "${small[@]}" --features last-cumulative --exp-dir "$exp/full" --num-epochs 12 \
  --max-duration 14 --base-lr 0.003 --time-mask-length 8 --resume auto

decode_full() {
  local method
  for method in greedy_search modified_beam_search; do
    python -m xlsr_transducer.decode --exp-dir "$exp/full" "${tests[@]}" --decoding-method "$method"
  done
}

log "5. A streaming model that continues from it: all layers trained, many chunk sizes in one; from the waveform,"
log "   with pauses and changes of level, so that it gives no words where nobody speaks"
beside decode_full
./train.sh "${small[@]}" --cut waveform --xlsr "$toy_xlsr" --exp-dir "$exp/streaming" \
  --pause-prob 0.5 --gain-prob 0.5 --gain-db=-25,3 \
  --streaming 1 --chunk-size 32,16,64,-1 --left-context-chunks 2,1,4 \
  --attention-sink-size 4,0,16 --init-from "$exp/full/best-valid-wer.pt" \
  --num-epochs 4 --max-duration 20 --base-lr 0.002 --encoder-lr-scale 0.5 --xlsr-dropout 0.05 \
  --resume auto

log "6. Word error rates: full context, then one streaming model at many latencies"
show_beside
beside python -m xlsr_transducer.export --exp-dir "$exp/streaming" --jit 1 --wav2vec2-ctc 1 --onnx 1 \
  --wav "$data"/demo/test_seen_000[0-3].wav
python -m local.streaming_table --exp-dir "$exp/streaming" "${tests[@]}"
python -m xlsr_transducer.streaming_decode --exp-dir "$exp/streaming" "${tests[@]}"

log "7. Export: each file is loaded again in a process of its own and compared with the checkpoint"
show_beside
echo "These are figures of a toy network on synthetic speech, with the number of words beside them:"
echo "they say that the recipe works, and nothing about XLSR. They differ a little from one kind of"
echo "processor to another. Results lie in $exp."
if (($#)); then
  exec "${serve[@]}"
fi
echo
echo "To see it live, run ./demo.sh --serve, open the address that it prints in a browser, and give the"
echo "page a file such as $data/demo/test_unseen_0000.wav, or speak. The toy network knows the kind of"
echo "sentences that the corpus has, and synthetic voices alone."
