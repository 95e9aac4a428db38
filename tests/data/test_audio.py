"""Every command reads the same samples: channel 0 at 16 kHz, whatever the file."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut
from lhotse.utils import fastcopy

from local.probe_audio import probe_audio
from tests.support.mp3_files import DELAY, write_mp3
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import AUDIO_DURATION, cut_of_file, num_samples, read_audio
from xlsr_transducer.data.audio_file import AudioProblem, decode, read_audio_file


def write_tone(path, rate: int, seconds: float = 0.5):
    """Two channels: 440 Hz on the first, noise on the second."""
    time = np.arange(round(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, len(tone))
    soundfile.write(path, np.stack((tone, noise), axis=1), rate)
    return path


@pytest.mark.parametrize(
    "ending, error", [("wav", 2e-3), ("flac", 2e-3), ("ogg", 0.1), ("mp3", 0.1)]
)
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_any_format_and_rate_becomes_channel_0_at_16_khz(tmp_path, rate, ending, error):
    samples = read_audio(write_tone(tmp_path / f"tone.{ending}", rate))
    assert samples.dtype == np.float32 and samples.shape == (8000,)
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    middle = slice(1600, 6400)  # a resampler knows nothing beyond the ends
    assert np.abs(samples - expected)[middle].max() < error


def test_16_khz_samples_are_read_as_they_are(tmp_path):
    wave = np.random.default_rng(0).integers(-(2**15), 2**15, 999, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    assert np.array_equal(read_audio(tmp_path / "a.wav"), wave.astype(np.float32) / 2**15)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("count", [1, 7, 400, 12345])
def test_the_manifest_tells_the_number_of_samples(tmp_path, rate, count):
    soundfile.write(tmp_path / "a.wav", np.full(count, 0.1), rate)
    cut = cut_of_file(tmp_path / "a.wav")
    assert len(read_audio(cut)) == num_samples(cut) == len(read_audio(tmp_path / "a.wav"))


def test_a_cut_with_features_gives_all_of_its_audio(tmp_path):
    cut = cut_of_file(write_tone(tmp_path / "a.wav", 22050))
    shorter = fastcopy(
        cut,
        duration=0.48,
        recording=cut.recording.resample(16000),
        custom={AUDIO_DURATION: cut.duration},
    )
    assert np.array_equal(read_audio(shorter), read_audio(cut))


def test_a_part_of_a_recording_is_that_part(tmp_path):
    whole = cut_of_file(write_tone(tmp_path / "a.wav", 16000))
    part = MonoCut("part", 0.125, 0.25, 1, recording=whole.recording)
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert np.array_equal(read_audio(part), expected[2000:6000, 1])


def damage_missing(path):
    path.unlink()


def damage_junk(path):
    path.write_bytes(b"no audio " * 50)


def damage_truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage_nan(path):
    soundfile.write(path, np.full((8000, 2), np.nan), 16000, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    "damage, reason",
    [
        (damage_missing, "no such audio file"),
        (damage_junk, "unreadable audio"),
        (damage_truncate, "truncated"),
        (damage_nan, "not numbers"),
    ],
)
def test_damaged_audio_is_an_error_that_names_file_and_reason(tmp_path, damage, reason):
    path = write_tone(tmp_path / "a.wav", 16000)
    cut = cut_of_file(path)
    damage(path)
    with pytest.raises(UserError, match=reason) as caught:
        read_audio(cut)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(UserError, match="a.wav"):
        read_audio(tmp_path / "a.wav")


def loud_then_quiet(rate: int) -> np.ndarray:
    """Five seconds, of which libsndfile takes the first to tell the bitrate of all."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(5 * rate)
    return noise * np.where(np.arange(5 * rate) < 2 * rate, 1, 1e-4)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", [32000, 48000])
def test_mp3_without_a_length_is_decoded_to_its_end(tmp_path, rate, mode):
    path = tmp_path / "a.mp3"
    expected = write_mp3(path, loud_then_quiet(rate), rate, mode)
    length = probe_audio(str(path)).num_samples
    assert length % 1152 == 0 and len(expected) < length <= len(expected) + 2 * 1152
    cut = cut_of_file(path)
    assert cut.recording.num_samples == length
    samples, _ = decode(path)
    assert len(samples) == length
    assert np.abs(samples[DELAY : DELAY + len(expected), 0] - expected)[:-DELAY].max() < 1e-5
    wave = read_audio(cut)
    assert len(wave) == num_samples(cut) and np.array_equal(wave, read_audio(path))
    assert len(read_audio_file(path)) == len(wave)
    part = fastcopy(cut, start=1.0, duration=0.5, recording=cut.recording)
    assert np.abs(read_audio(part) - wave[16000:24000])[200:-200].max() < 0.01


def test_mp3_cut_in_a_frame_holds_the_frames_before(tmp_path):
    path = tmp_path / "a.mp3"
    write_mp3(path, loud_then_quiet(32000), 32000, "CONSTANT")
    content, whole = path.read_bytes(), len(decode(path)[0])
    for size in (len(content) // 2, len(content) - 7, len(content) - 300):
        path.write_bytes(content[:size])
        length = probe_audio(str(path)).num_samples
        assert length % 1152 == 0 and whole * size / len(content) - 2304 < length < whole
        assert len(decode(path)[0]) == length


def test_flac_without_a_length_is_decoded_to_its_end(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.full(70000, 0.1), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert probe_audio(str(path)).num_samples == len(read_audio(path)) == 70000
    assert len(read_audio_file(path)) == 70000


@pytest.mark.parametrize("ending", ["opus", "sph"])
def test_the_ending_of_the_name_chooses_no_other_program(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    form = {"opus": ("OGG", "OPUS"), "sph": ("NIST", "PCM_16")}[ending]
    soundfile.write(path, np.full(16000, 0.1), 16000, format=form[0], subtype=form[1])
    assert probe_audio(str(path)).num_samples == 16000
    assert np.array_equal(read_audio(cut_of_file(path)), read_audio_file(path))


def test_sph_compressed_by_shorten_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.sph"
    header = b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    path.write_bytes(header.ljust(1024) + b"ajkg\x02" + bytes(2000))
    for read in (read_audio, read_audio_file):
        with pytest.raises(UserError, match="a.sph: .*shorten.*sph2pipe"):
            read(path)
    with pytest.raises(AudioProblem, match="shorten"):
        probe_audio(str(path))
