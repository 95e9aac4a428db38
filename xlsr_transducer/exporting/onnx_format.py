"""ONNX: encoder, decoder and joiner, offline and streaming, and ``model.onnx`` that does it all.

A model with CTC alone is one file, ``ctc-*.onnx``, in place of the three.

PyTorch's TorchScript-based exporter writes them: it takes half a second for what the newer one
needs half a minute for, and one file runs for any number of streams, samples and frames.
``--fp16`` and ``--int8`` write further copies beside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import HOP, RECEPTIVE_FIELD, SAMPLING_RATE, SUBSAMPLING
from xlsr_transducer.data.tokenizer import hash_of_tokens
from xlsr_transducer.exporting import onnx_graphs as graphs
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.onnx_int8 import quantize_matrices
from xlsr_transducer.exporting.scripted import OfflineEncoder
from xlsr_transducer.model.heads.ctc import BLANK_ID
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.exported import Output, recognise, without_repeats
from xlsr_transducer.recognition.onnx_models import (
    CTC,
    SEAL,
    digest,
    load_offline,
    load_streaming,
    metadata,
    open_session,
)
from xlsr_transducer.search import SearchOptions

OPSET = 17  # what every onnxruntime since 1.12 reads
TOLERANCES = {"": 5e-5, ".fp16": 0.5, ".int8": 5.0}  # encoder output, projected: about 1 large
MOST_BYTES = 2**31  # that an ONNX file can hold
PARTS = ("encoder", "decoder", "joiner")
WHOLE = "model"


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: a package is missing, or the model is one that ONNX files cannot hold.
    """
    _check(job)
    about = describe(job)
    writers = [write_offline]
    if has_room_for_blanks(job.loaded.model):
        writers.append(_write_whole)
    writers += [write_streaming] if not job.chunk.is_full_context else []
    artifacts = []
    for suffix, model in _precisions(job):
        with torch.no_grad(), graphs.traceable(model):
            for write_files in writers:
                artifacts.append(write_files(job, model, suffix, folder, about))
    if job.options.int8:
        artifacts += [quantize(a, folder) for a in artifacts if ".fp16" not in a.files[0]]
    return artifacts


def names(job: Job, suffix: str = "", is_streaming: bool = False) -> tuple[str, ...]:
    """icefall's names of encoder, decoder and joiner, or of the one file of a CTC model."""
    name = job.name.replace("-use-averaged-model", "")
    name += f"-{job.chunk.describe()}" * is_streaming + f"{suffix}.onnx"
    parts = PARTS if job.loaded.model.joiner is not None else (CTC,)
    return tuple(f"{part}-{name}" for part in parts)


def has_room_for_blanks(model: SpeechModel) -> bool:
    """Whether ``model.onnx`` can be written; says why not."""
    if model.joiner is None or model.encoder.subsampling_factor == SUBSAMPLING:
        return True
    logging.warning(
        f"{WHOLE}.onnx is left out: its frames of 20 ms hold a token and a blank of an encoder "
        "frame of 40 ms, and this transducer has --adapter none"
    )
    return False


def _check(job: Job) -> None:
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as e:
            raise UserError(
                f"--onnx 1 needs the package {package}, which is not installed here: "
                "pip install onnx onnxruntime"
            ) from e
    size = sum(p.numel() * p.element_size() for p in job.loaded.model.parameters())
    if size >= MOST_BYTES:
        raise UserError(
            f"--onnx 1: the model has {size / 2**30:.1f} GiB of weights, and an ONNX file holds "
            "at most 2; export it with --jit 1"
        )
    if not job.chunk.is_full_context and job.chunk.left_context_chunks < 0:
        raise UserError(
            "--onnx 1: with all left context the state grows, which a graph cannot express; "
            "give --left-context-chunks 2 or another number"
        )


def _precisions(job: Job) -> Iterator[tuple[str, SpeechModel]]:
    yield "", job.loaded.model
    if job.options.fp16:
        yield ".fp16", graphs.half(job.loaded.model)


def describe(job: Job) -> dict[str, Any]:
    """Returns what every file records about the model."""
    config, model = job.loaded.config, job.loaded.model
    of_decoder = {"context_size": model.decoder.context_size} if model.decoder else {}
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.contiguous().numpy().data)
    return {
        "model_type": "xlsr_transducer",
        "version": 1,
        "weights": job.name,
        "weights_sha256": weights.hexdigest(),
        "tokens_sha256": hash_of_tokens(job.loaded.tokenizer.tokens),
        "sample_rate": SAMPLING_RATE,
        "normalize": config.features.normalize,
        "vocab_size": config.vocab_size,
        "blank_id": BLANK_ID,
        **of_decoder,
        "hop": model.encoder.xlsr.hop,
        "head": model.encoder.xlsr.overlap,
        "num_heads": model.encoder.config.num_attention_heads,
        "conv_width": model.encoder.config.conv_dim[0],
        "subsampling_factor": model.encoder.subsampling_factor,
        **dataclasses.asdict(job.chunk),
    }


def write_offline(
    job: Job, model: SpeechModel, suffix: str, folder: Path, about: dict[str, Any]
) -> Artifact:
    """Returns the files for whole utterances."""
    encoder, inputs = _offline_encoder(job, model)
    files = names(job, suffix)
    (output, lens), kind = _outputs_and_kind(model)
    outputs = {output: "NT", lens: "N"}
    _export(encoder, inputs, {"x": "Nn", "x_lens": "N"}, outputs, folder / files[0])
    _finish(folder / files[0], {**about, "kind": kind})
    _write_rest(model, folder, files, about)
    tolerance = TOLERANCES[suffix]
    return Artifact(files, run_offline, job.chunk, False, tolerance, not suffix, True)


def _outputs_and_kind(model: SpeechModel) -> tuple[tuple[str, str], str]:
    """Returns icefall's names of an encoder's outputs, and the kind of its file, for metadata."""
    if model.joiner is None:
        return ("log_probs", "log_probs_len"), f"{CTC} encoder"
    return ("encoder_out", "encoder_out_lens"), "encoder"


def _offline_encoder(job: Job, model: SpeechModel) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Returns the module, and what it is traced with.

    Longer than a chunk, and with padding: what is traced then holds for every length.
    """
    num_samples = max(32000, 5 * HOP * job.chunk.chunk_size // 2)
    x = 0.05 * torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([num_samples, num_samples - 9600])
    offline = OfflineEncoder(model.encoder, job.chunk)
    encoder = graphs.WholeUtterances(offline, graphs.projection_of(model))
    return encoder.eval(), (x, lens)


def _write_whole(
    job: Job, model: SpeechModel, suffix: str, folder: Path, about: dict[str, Any]
) -> Artifact:
    """``model.onnx``."""
    encoder, inputs = _offline_encoder(job, model)
    with _quiet_tracer():
        traced = torch.jit.trace(encoder, tuple(x[:1] for x in inputs), check_trace=False)
    level, repeats = graphs.level_of(about["normalize"]), model.encoder.subsampling_factor
    if model.joiner is None:
        whole: nn.Module = graphs.WholeCtc(traced, repeats, level)
    else:
        search = graphs.GreedySearch(*_decoder_and_joiner(model))
        whole = graphs.WholeRecogniser(traced, search, about["vocab_size"], level)
    path = folder / f"{WHOLE}{suffix}.onnx"
    scripted = torch.jit.script(whole.eval())
    _export(scripted, (inputs[0][:1],), {"x": " n"}, {"logits": " T"}, path)
    about = {**about, "kind": "whole recogniser", "level": level}
    _finish(path, about, (1, None, about["vocab_size"]))
    return Artifact((path.name,), run_whole, job.chunk, False, TOLERANCES[suffix], not suffix)


def write_streaming(
    job: Job, model: SpeechModel, suffix: str, folder: Path, about: dict[str, Any]
) -> Artifact:
    """Returns the files for chunks."""
    step = graphs.OneChunk(model)
    state = model.encoder.get_init_states(2, torch.device("cpu"))
    x = torch.zeros(2, job.chunk.chunk_size * about["hop"])
    tensors = dict(zip(graphs.STATES, (*state.xlsr, state.adapter)))
    inputs = {name: "N" for name in ("x", "x_lens", *tensors)}
    of_encoder, kind = _outputs_and_kind(model)
    outputs = [*of_encoder, *(f"new_{name}" for name in tensors)]
    files = names(job, suffix, is_streaming=True)
    lens = torch.full([2], x.shape[1])
    _export(
        step, (x, lens, *tensors.values()), inputs, dict.fromkeys(outputs, "N"), folder / files[0]
    )
    shapes = json.dumps({name: ["N", *value.shape[1:]] for name, value in tensors.items()})
    about = {**about, "state_shapes": shapes}
    _finish(folder / files[0], {**about, "kind": f"streaming {kind}"})
    _write_rest(model, folder, files, about)
    tolerance = TOLERANCES[suffix]
    return Artifact(files, run_streaming, job.chunk, True, tolerance, not suffix, True)


def _decoder_and_joiner(model: SpeechModel) -> tuple[nn.Module, nn.Module]:
    decoder = graphs.ProjectedDecoder(model.decoder, model.joiner)
    return decoder.eval(), graphs.ProjectedJoiner(model.joiner).eval()


def _write_rest(
    model: SpeechModel, folder: Path, files: tuple[str, ...], about: dict[str, Any]
) -> None:
    """Decoder and joiner, of a transducer."""
    if model.joiner is None:
        return
    decoder, joiner = _decoder_and_joiner(model)
    context = torch.zeros(2, about["context_size"], dtype=torch.int64)
    _export(decoder, (context,), {"y": "N"}, {"decoder_out": "N"}, folder / files[1])
    side = decoder(context)
    sides = {"encoder_out": "N", "decoder_out": "N"}
    _export(joiner, (side, side), sides, {"logit": "N"}, folder / files[2])
    for name, kind in zip(files[1:], ("decoder", "joiner")):
        _finish(folder / name, {**about, "kind": kind})


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_axes: dict[str, str],
    output_axes: dict[str, str],
    path: Path,
) -> None:
    """Writes a graph; an axis that a letter names may have any length, a blank keeps its own."""
    axes = {
        name: {i: letter for i, letter in enumerate(letters) if letter != " "}
        for name, letters in {**input_axes, **output_axes}.items()
    }
    with _quiet_tracer():
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(input_axes),
            output_names=list(output_axes),
            dynamic_axes=axes,
        )


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Without warnings of values that become constants: the check of the file would tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _finish(path: Path, about: dict[str, Any], output_shape: tuple[int | None, ...] = ()) -> None:
    """Puts metadata, the shape of the output where it is known, and the file's hash into it."""
    import onnx

    model = onnx.load(str(path))
    for dim, size in zip(
        model.graph.output[0].type.tensor_type.shape.dim if output_shape else (), output_shape
    ):
        if size is not None:
            dim.Clear()
            dim.dim_value = size
    onnx.helper.set_model_props(
        model, {**{key: str(value) for key, value in about.items()}, "sha256": "0" * 64}
    )
    content = model.SerializeToString()
    sha = digest(content)[1].encode()
    place = content.rfind(SEAL) + len(SEAL)
    path.write_bytes(content[:place] + sha + content[place + 64 :])


def quantize(artifact: Artifact, folder: Path) -> Artifact:
    """Returns the same files with eight-bit weights in the encoder's matrix products.

    Decoder and joiner, a thousandth of the work, stay as they are.
    """
    files = []
    for name in artifact.files:
        target = name.replace(".onnx", ".int8.onnx")
        if name.startswith(("decoder", "joiner")):
            shutil.copyfile(folder / name, folder / target)
        else:
            quantize_matrices(folder / name, folder / target)
            _finish(folder / target, metadata(open_session(folder / name)))
        files.append(target)
    return dataclasses.replace(
        artifact, files=tuple(files), tolerance=TOLERANCES[".int8"], same_text=False
    )


def run_offline(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs the files for whole utterances."""
    return list(recognise(load_offline(files), waves, SearchOptions()))


def run_streaming(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs the files for chunks."""
    return list(recognise(load_streaming(files), waves, SearchOptions()))


def run_whole(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs ``model.onnx`` on samples as they are, without a server's normalisation."""
    session = open_session(files[0])
    about = metadata(session)
    level, per_frame = float(about["level"]), int(about["subsampling_factor"])
    outputs = []
    for wave in waves:
        if len(wave) < RECEPTIVE_FIELD:
            outputs.append(Output([], []))
            continue
        logits = session.run(None, {"x": (wave / level).unsqueeze(0).numpy()})[0]
        outputs.append(without_repeats(logits[0].argmax(-1).tolist(), per_frame))
    return outputs
