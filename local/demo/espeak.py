"""Speech synthesis in this process: libespeak-ng, bundled by the espeakng-loader wheel, by ctypes.

Gives the samples of an utterance and, from the library's phoneme events, where each phoneme
begins. One synthesizer per process: the library keeps its state in globals.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from pathlib import Path

import numpy as np

from xlsr_transducer.core.errors import UserError, interrupts_held_back

# Numbers of espeak-ng's speak_lib.h, API revision 12.
_SYNCHRONOUS = 2
_OPTION_PHONEME_EVENTS = 1
_OPTION_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE, _PARAMETER_WORDGAP = 1, 3, 4, 7
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True)
class Speech:
    """One synthesized utterance."""

    samples: np.ndarray  # int16, mono
    sampling_rate: int
    phonemes: list[tuple[int, str]]  # (first sample, espeak's phoneme name), in order of time


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, Path, int]:
    """libespeak-ng, its data and its sampling rate.

    It is initialised once in a process: a second time would free the tables of phonemes that the
    voices chosen before still point to, and speech would come from whatever lies there later.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "speech synthesis needs the package espeakng-loader: pip install espeakng-loader"
        ) from None
    data = Path(espeakng_loader.get_data_path())
    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    lib.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    lib.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
        ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    rate = lib.espeak_Initialize(
        _SYNCHRONOUS, 0, str(data).encode(), _OPTION_PHONEME_EVENTS | _OPTION_DONT_EXIT
    )
    if rate <= 0:
        raise UserError(f"libespeak-ng does not start with its data in {data}")
    return lib, data, rate


class Synthesizer:
    """libespeak-ng with its voices.

    Raises UserError where the wheel is not installed or does not start.
    """

    def __init__(self) -> None:
        self._lib, self._data, self.sampling_rate = _library()
        # The library seeds the breath noise of some voices from the clock.
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._blocks: list[np.ndarray] = []
        self._phonemes: list[tuple[int, str]] = []
        self._callback = _Callback(self._receive)  # kept, or ctypes would free it

    def _receive(self, wav, count, events) -> int:
        if wav and count > 0:
            self._blocks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        i = 0
        while events and events[i].type != _EVENT_LIST_TERMINATED:
            if events[i].type == _EVENT_PHONEME:
                name = events[i].id.string.decode("utf-8", "replace")
                self._phonemes.append((events[i].sample, name))
            i += 1
        return 0

    def check_voice(self, voice: str) -> None:
        """Raises UserError for an unknown variant, which espeak-ng would silently replace."""
        language, _, variant = voice.partition("+")
        if variant and not (self._data / "voices" / "!v" / variant).is_file():
            raise UserError(f"espeak-ng has no voice variant {variant!r} (of voice {voice!r})")
        if self._lib.espeak_SetVoiceByName(language.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {language!r}")

    def speak(
        self,
        text: str,
        voice: str = "et",
        rate: int = 150,
        pitch: int = 50,
        pitch_range: int = 50,
        word_gap: int = 0,
    ) -> Speech:
        """Synthesizes ``text``.

        rate: words per minute (80 to 450); pitch, pitch_range: 0 to 100, 50 is the voice's own;
        word_gap: extra pause between words in 10 ms. The pitch flutter of the library runs on
        from one call to the next: the same calls from the start of a process give the same
        samples, the same text twice does not.
        """
        self.check_voice(voice)
        self._blocks.clear()
        self._phonemes.clear()
        self._lib.espeak_SetSynthCallback(self._callback)  # each synthesizer has its own
        self._lib.espeak_SetVoiceByName(voice.encode())
        for parameter, value in (
            (_PARAMETER_RATE, rate),
            (_PARAMETER_PITCH, pitch),
            (_PARAMETER_RANGE, pitch_range),
            (_PARAMETER_WORDGAP, word_gap),
        ):
            self._lib.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode("utf-8")
        with interrupts_held_back():  # the library would lose an exception of the callback
            status = self._lib.espeak_Synth(
                encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None
            )
        if status != 0:
            raise UserError(f"espeak-ng cannot speak {text!r} (status {status})")
        samples = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.int16)
        phonemes = [(at, name.lstrip("',")) for at, name in self._phonemes]
        return Speech(samples, self.sampling_rate, phonemes)
