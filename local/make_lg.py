"""Stage 7: the graph of fast_beam_search_LG and fast_beam_search_nbest_LG; needs k2.

    python -m local.make_lg --lang-dir data/lang_bpe_2500 [--ngram-order 3]

reads LANG_DIR/word_ngram_ORDER.arpa, which `local.make_ngram --unit word` makes, and writes
LANG_DIR/LG.pt. L is the lexicon: how the BPE model spells each of those words. G is the n-gram
model, one state per context. LG accepts the tokens of any row of words, with the weight that G
gives it (M. Mohri, F. Pereira, M. Riley, "Speech recognition with weighted finite-state
transducers", 2008). Tokens tell words apart, so LG has no output labels.

The file holds tensors and plain values: `arcs`, (A, 4) int32 as k2 has them, and `tokens`.

Letters: V tokens, W words, A arcs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlsr_transducer.core.compat import import_k2
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.data.sources import load_sources, note_source
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.k2.lattices import write_lg
from xlsr_transducer.search.lm.ngram import BEGIN, END, Ngrams, read_arpa

# An arc: from, to, label, output label, score. The last state is the final one, and arcs into
# it have the label -1, as k2 wants it.
Arc = tuple[int, int, int, int, float]
FINAL = -1


def spellings(words: Sequence[str], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Word id + 1, as 0 is epsilon, -> tokens, for the words that the tokens can spell."""
    return {
        i + 1: row
        for i, (word, row) in enumerate(zip(words, tokenizer.encode(list(words))))
        if i > END and word != "<unk>" and row and tokenizer.unk_id not in row
    }


def lexicon_arcs(spelt: dict[int, list[int]], num_words: int, vocab_size: int) -> list[Arc]:
    """L, from tokens to words; state 0 lies between two words.

    Disambiguation symbols: token V goes with word W + 1, the back-off of G; token V + 1 ends a
    spelling that others begin with. Without them LG could not be made deterministic.
    """
    beginnings = {tuple(row[:n]) for row in spelt.values() for n in range(1, len(row))}
    arcs: list[Arc] = [(0, 0, vocab_size, num_words + 1, 0.0)]
    num_states = 1
    for word, row in spelt.items():
        if tuple(row) in beginnings:
            row = [*row, vocab_size + 1]
        states = [0, *range(num_states, num_states + len(row) - 1), 0]
        num_states += len(row) - 1
        outputs = [word] + [0] * (len(row) - 1)
        arcs += [(a, b, v, w, 0.0) for a, b, v, w in zip(states, states[1:], row, outputs)]
    return [*arcs, (0, FINAL, -1, -1, 0.0)]


def grammar_arcs(ngrams: Ngrams, spelt: dict[int, list[int]], num_words: int) -> list[Arc]:
    """G over word ids + 1, with natural log-probs; back-off arcs have the label W + 1."""
    longest = max(map(len, ngrams))
    contexts = [n for n in ngrams if len(n) < longest and n[-1] != END]
    # A sentence begins in the first state.
    contexts.sort(key=lambda context: context != (BEGIN,))
    state_of = {context: state for state, context in enumerate([*contexts, ()])}

    def state_after(ngram: tuple[int, ...]) -> int:
        while ngram not in state_of:
            ngram = ngram[1:]
        return state_of[ngram]

    arcs: list[Arc] = []
    for ngram, (weight, _) in ngrams.items():
        source, word = state_of.get(ngram[:-1]), ngram[-1] + 1
        if source is None or ngram[-1] == BEGIN:
            continue
        if ngram[-1] == END:
            arcs.append((source, FINAL, -1, -1, weight))
        elif word in spelt:
            arcs.append((source, state_after(ngram), word, word, weight))
    for context, state in state_of.items():
        if context:
            label = num_words + 1
            arcs.append((state, state_after(context[1:]), label, label, ngrams[context][1]))
    return arcs


def make_fsa(k2: Any, arcs: list[Arc]) -> Any:
    """Returns the k2.Fsa of ``arcs``, with output labels."""
    final = max(max(a[0], a[1]) for a in arcs) + 1
    rows = sorted((a, final if b == FINAL else b, *rest) for a, b, *rest in arcs)
    *numbers, scores = zip(*rows)
    source, target, label, output = torch.tensor(numbers, dtype=torch.int32)
    bits = torch.tensor(scores, dtype=torch.float32).view(torch.int32)
    return k2.arc_sort(k2.Fsa(torch.stack([source, target, label, bits], 1), aux_labels=output))


def compose_lg(k2: Any, lexicon: Any, grammar: Any, vocab_size: int) -> Any:
    """LG over tokens, without epsilons."""
    lg = k2.connect(k2.compose(lexicon, grammar))
    del lg.aux_labels
    lg = k2.determinize(lg, k2.DeterminizeWeightPushingType.kLogWeightPushing)
    lg = k2.connect(lg)
    labels = lg.labels.clone()
    labels[labels >= vocab_size] = 0
    lg.labels = labels
    return k2.arc_sort(without_twins(k2, k2.connect(k2.remove_epsilon(lg))))


def without_twins(k2: Any, graph: Any) -> Any:
    """Of arcs with the same ends and the same label, the best alone.

    Otherwise a sum over all paths would count a word's end as often as there are ways to back
    off there, as k2 takes the weights off the arcs of the last frame.
    """
    arcs, twin_of = torch.unique(graph.arcs.values()[:, :3], dim=0, return_inverse=True)
    scores = torch.full((len(arcs),), -float("inf"))
    scores = scores.scatter_reduce(0, twin_of, graph.scores, "amax")
    return k2.Fsa(torch.cat([arcs, scores.view(torch.int32).unsqueeze(1)], 1))


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument("--ngram-order", type=Number(int, at_least=1, at_most=9), default=3)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    k2 = import_k2("LG.pt")
    tokenizer = Tokenizer.load(args.lang_dir)
    words, ngrams = read_arpa(args.lang_dir / f"word_ngram_{args.ngram_order}.arpa")
    spelt = spellings(words, tokenizer)
    if not spelt:
        raise UserError(f"{args.lang_dir}: its tokens can spell no word of the n-gram model")
    lexicon = make_fsa(k2, lexicon_arcs(spelt, len(words), tokenizer.vocab_size))
    grammar = make_fsa(k2, grammar_arcs(ngrams, spelt, len(words)))
    lg = compose_lg(k2, lexicon, grammar, tokenizer.vocab_size)
    path = args.lang_dir / "LG.pt"
    write_lg(path, lg, tokenizer.tokens)
    arpa = f"word_ngram_{args.ngram_order}.arpa"
    note_source(args.lang_dir, path.name, load_sources(args.lang_dir).get(arpa, ""))
    logging.info(
        "%s: %d words of %d, %d arcs", path, len(spelt), len(words) - END - 1, lg.num_arcs
    )


if __name__ == "__main__":
    run_command(main)
