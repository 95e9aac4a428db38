"""What sherpa asks of TorchScript files, in its order, with torch alone; prints JSON.

    python sherpa_calls.py AUDIO OFFLINE STREAMING WAV2VEC2_CTC

Offline transducer, streaming zipformer and wav2vec 2.0 with CTC, as its C++ sources call them:
warm-up first, batches padded with the log of 1e-10, one symbol per frame, blank 0.
"""

import json
import math
import sys

import torch

PADDING = -23.025850929940457


def pad(waves, layout):
    """The shapes in which samples reach an encoder, and their lengths in units of dimension 1."""
    if layout == "frames":
        whole = [w[: len(w) // 160 * 160] for w in waves]
        waves = [w.reshape(-1, 160) for w in whole]
    elif layout == "columns":
        waves = [w.unsqueeze(1) for w in waves]
    lens = torch.tensor([len(w) for w in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, True, PADDING)
    return padded, lens


def search(model, encoder_out, lens, context, found, start=0):
    """Greedy search from where ``found`` and ``context`` stand, joined frame by frame."""
    projected = model.joiner.encoder_proj.forward(encoder_out)
    for row in range(len(lens)):
        for t in range(int(lens[row])):
            decoder_out = model.decoder.forward(torch.tensor([context[row]]), False)
            decoder_out = model.joiner.decoder_proj.forward(decoder_out)
            logits = model.joiner.forward(
                projected[row, t].view(1, 1, 1, -1), decoder_out.unsqueeze(1), False
            )
            token = int(logits.argmax())
            if token != 0:
                context[row] = context[row][1:] + [token]
                found[row][0].append(token)
                found[row][1].append(start + t)
    return found


def begin(model, streams):
    first = [-1] * (model.decoder.context_size - 1) + [0]
    return [list(first) for _ in range(streams)], [[[], []] for _ in range(streams)]


def offline(model, waves, layout):
    x, lens = pad(waves, layout)
    encoder_out, out_lens = model.encoder.forward(x, lens)[:2]
    assert out_lens.dtype == torch.int64
    return search(model, encoder_out, out_lens, *begin(model, len(waves)))


def batch_dim(i, count):
    return 1 if i < count - 2 and i % 6 < 4 else 0


def streaming(model, waves):
    """All streams in one batch that is taken apart and put together again at each step."""
    size = 2 * model.encoder.chunk_size + model.encoder.pad_length
    model.encoder.forward(
        torch.rand(1, size, 80), torch.tensor([size]), model.encoder.get_init_states(1)
    )
    states = [model.encoder.get_init_states(1, torch.device("cpu")) for _ in waves]
    context, found = begin(model, len(waves))
    shift = 2 * model.encoder.chunk_size * 160
    for start in range(0, max(map(len, waves)), shift):
        windows = torch.zeros(len(waves), size * 160)
        lens = torch.zeros(len(waves), dtype=torch.int64)
        for row, wave in enumerate(waves):
            part = wave[start : start + size * 160]
            windows[row, : len(part)], lens[row] = part, len(part)
        count = len(states[0])
        joined = [torch.cat([s[i] for s in states], batch_dim(i, count)) for i in range(count)]
        encoder_out, out_lens, joined = model.encoder.forward(windows, lens, joined)
        parts = [t.chunk(len(waves), batch_dim(i, count)) for i, t in enumerate(joined)]
        states = [list(s) for s in zip(*parts)]
        frames = model.encoder.chunk_size // 2
        search(model, encoder_out, out_lens, context, found, start // shift * frames)
    return found


def ctc(model, waves):
    x, lens = pad(waves, "samples")
    logits, out_lens = model.forward(x, lens)
    best = logits.log_softmax(-1).argmax(-1)
    found = []
    for row in range(len(waves)):
        before, tokens, frames = 0, [], []
        for t, token in enumerate(best[row, : out_lens[row]].tolist()):
            if token not in (0, before):
                tokens.append(token)
                frames.append(t // 2)  # frames of 20 ms
            before = token
        found.append([tokens, frames])
    return found


def filter_banks(wave, bins=80):
    """(n,) samples -> (n / 160, bins), as kaldifeat computes them without dither."""
    frames = torch.nn.functional.pad(wave, (120, 280)).unfold(0, 400, 160)[: len(wave) // 160]
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
    frames = frames * torch.hann_window(400, periodic=False) ** 0.85
    power = torch.fft.rfft(frames, 512).abs().square()[:, :256]
    mel = 1127 * (1 + torch.arange(256) * 16000 / 512 / 700).log()
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 7600))
    edges = torch.linspace(low, high, bins + 2).unsqueeze(1)
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp(min=0)
    return (power @ weights.t()).clamp(min=torch.finfo(torch.float32).eps).log()


def refusals(offline_model, streaming_model, waves):
    """The errors of models that stock programs hand filter banks: whole, padded, a window."""
    features = [filter_banks(w) for w in waves]
    lens = torch.tensor([len(f) for f in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, True, PADDING)
    encoder = streaming_model.encoder
    size = 2 * encoder.chunk_size + encoder.pad_length
    loud = (features[0] + 20).unsqueeze(0)  # of samples that are not normalised: all positive
    calls = [
        lambda: offline_model.encoder.forward(features[0].unsqueeze(0), lens[:1]),
        lambda: offline_model.encoder.forward(padded, lens),
        lambda: offline_model.encoder.forward(loud, lens[:1]),
        lambda: offline_model.encoder.forward(filter_banks(waves[0], 40)[None], lens[:1]),
        lambda: encoder.forward(
            features[0][None, :size], torch.tensor([size]), encoder.get_init_states(1)
        ),
    ]
    messages = []
    for call in calls:
        try:
            call()
            messages.append("no error")
        except torch.jit.Error as e:
            messages.append(str(e).strip().splitlines()[-1])
    return messages


def main(audio, *files):
    waves = torch.load(audio)
    models = [torch.jit.load(f, map_location="cpu").eval() for f in files]
    assert [hasattr(m, "joiner") for m in models] == [True, True, False]
    assert models[1].encoder.original_name == "StreamingEncoderModel"
    assert models[2].original_name == "Wav2Vec2Model"
    silence = torch.zeros(32000)
    for features in (filter_banks(silence), torch.zeros(200, 80), silence):
        models[0].encoder.forward(features.unsqueeze(0), torch.tensor([len(features)]))
    models[2].forward(torch.zeros(1, 32000), torch.tensor([32000]))
    found = {"offline alone": [offline(models[0], [w], "samples")[0] for w in waves]}
    for layout in ("samples", "columns", "frames"):
        found[f"offline, {layout} together"] = offline(models[0], waves, layout)
    found["streaming"] = streaming(models[1], waves)
    found["ctc alone"] = [ctc(models[2], [w])[0] for w in waves]
    found["ctc together"] = ctc(models[2], waves)
    assert not any(name.startswith("xlsr_transducer") for name in sys.modules)
    print(json.dumps({"found": found, "refusals": refusals(models[0], models[1], waves)}))


if __name__ == "__main__":
    # Compiling a graph anew for every shape takes PyTorch 1.13 much longer than running it.
    with torch.no_grad(), torch.jit.optimized_execution(False):
        main(*sys.argv[1:])
