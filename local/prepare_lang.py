"""Stage 2, second part: the BPE model of the training text, or its letters.

    python -m local.prepare_lang --data-dir data --vocab-size 2500
    python -m local.prepare_lang --data-dir data --unit char

writes DATA/lang_bpe_2500/ or DATA/lang_char/ with bpe.model (of either kind) and tokens.txt. The
vocabulary includes `<blk>` 0, `<sos/eos>` 1 and `<unk>` 2, and after these, with --language-token
1, a token of each language of the training lists, such as `<et>`. Of letters, `▁` is one, the
boundary before each word.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, str2bool
from xlsr_transducer.data.lm_text import languages_of, texts_of
from xlsr_transducer.data.sources import note_source, text_digest
from xlsr_transducer.data.tokenizer import (
    BLANK,
    SOS_EOS,
    Tokenizer,
    is_language_token,
    language_token,
    read_tokens,
)


def train_bpe(texts: Iterable[str], vocab_size: int, language_tokens: Sequence[str] = ()) -> bytes:
    """Returns a sentencepiece BPE model with exactly ``vocab_size`` tokens.

    Raises UserError if the text has too few or too many different pieces for that.
    """
    try:
        return _train(texts, language_tokens, model_type="bpe", vocab_size=vocab_size)
    except RuntimeError as e:
        raise _explain(e, vocab_size) from e


def train_letters(texts: Iterable[str], language_tokens: Sequence[str] = ()) -> bytes:
    """Returns a sentencepiece model whose tokens are all characters of the texts.

    Raises UserError if there is no text.
    """
    try:
        return _train(texts, language_tokens, model_type="char", use_all_vocab=True)
    except RuntimeError as e:
        raise _explain(e) from e


def _train(texts: Iterable[str], language_tokens: Sequence[str], **kind: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        **kind,
        character_coverage=1.0,
        # Control symbols, so that no text can spell a blank or a language.
        control_symbols=[BLANK, SOS_EOS, *language_tokens],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        # The text is normalized already, as the report shows.
        normalization_rule_name="identity",
        max_sentence_length=1 << 20,
        minloglevel=2,
    )
    return model.getvalue()


def _explain(error: RuntimeError, vocab_size: int = 0) -> Exception:
    """sentencepiece's complaint about the vocabulary as one for the user."""
    message = str(error)
    too_high = re.search(r"set it to a value <= (\d+)", message)
    if too_high:
        return UserError(
            f"--vocab-size {vocab_size} is more than the training text allows: "
            f"the largest possible is {too_high.group(1)}"
        )
    too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_low:
        return UserError(
            f"--vocab-size {vocab_size} is less than the characters of the training text need: "
            f"the smallest possible is {too_low.group(1)}"
        )
    if "sentences_.empty()" in message:
        return UserError("the training text is empty")
    return error


def has_languages(lang_dir: Path) -> bool:
    """Returns whether a folder holds tokens of languages."""
    path = lang_dir / "tokens.txt"
    return path.is_file() and any(map(is_language_token, read_tokens(path)))


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--unit", choices=("bpe", "char"), default="bpe")
    parser.add_argument(
        "--vocab-size", type=Number(int, at_least=4), default=2500, help="of --unit bpe"
    )
    parser.add_argument(
        "--language-token",
        type=str2bool,
        help="1: a token of each training language (default: as in the folder, if it is there)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    texts = texts_of(args.data_dir, "train")
    is_bpe = args.unit == "bpe"
    lang_dir = args.data_dir / (f"lang_bpe_{args.vocab_size}" if is_bpe else "lang_char")
    wanted = has_languages(lang_dir) if args.language_token is None else args.language_token
    languages = languages_of(args.data_dir, "train") if wanted else ()
    marks = [language_token(language) for language in languages]
    model = train_bpe(texts, args.vocab_size, marks) if is_bpe else train_letters(texts, marks)
    tokenizer = Tokenizer(model)
    with replacing(lang_dir / "bpe.model", lang_dir / "tokens.txt") as (model, tokens):
        model.write_bytes(tokenizer.to_bytes())
        tokenizer.write_tokens(tokens)
    note_source(lang_dir, "bpe.model", text_digest(args.data_dir))
    logging.info("%s: %d tokens", lang_dir, tokenizer.vocab_size)


if __name__ == "__main__":
    run_command(main)
