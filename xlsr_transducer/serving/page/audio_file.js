// An audio file as samples.

const SAMPLING_RATE = 16000; // Hz, the model's

/** Why a file cannot be used; the message is for the user. */
export class FileProblem extends Error {}

/**
 * Reads channel 0 of a file.
 *
 * 16-bit wav is read here, at its own rate, and gives the samples that the server's own commands
 * read: browsers scale it by other factors above and below zero. The browser decodes what else it
 * can, resampled to 16 kHz.
 *
 * @param {File} file
 * @returns {Promise<{samples: Float32Array, rate: number}>} rate in Hz.
 * @throws {FileProblem}
 */
export async function readAudioFile(file) {
  let found;
  try {
    const data = await file.arrayBuffer();
    found = readWav(data) ?? (await decode(data));
  } catch {
    throw new FileProblem(`${file.name}: the browser cannot read this as audio.`);
  }
  if (!found.samples.length) {
    throw new FileProblem(`${file.name}: there is no audio in it.`);
  }
  return found;
}

async function decode(data) {
  const context = new OfflineAudioContext(1, 1, SAMPLING_RATE);
  const audio = await context.decodeAudioData(data);
  return { samples: audio.getChannelData(0), rate: SAMPLING_RATE };
}

/** Returns the samples of a 16-bit PCM wav file; undefined for any other file. */
function readWav(data) {
  const view = new DataView(data);
  const name = (at) => String.fromCharCode(...new Uint8Array(data, at, 4));
  if (data.byteLength < 44 || name(0) !== "RIFF" || name(8) !== "WAVE") {
    return undefined;
  }
  let format;
  for (let at = 12; at + 8 <= data.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    const start = at + 8;
    if (name(at) === "fmt ") {
      format = {
        coding: view.getUint16(start, true),
        channels: view.getUint16(start + 2, true),
        rate: view.getUint32(start + 4, true),
        bits: view.getUint16(start + 14, true),
      };
    } else if (name(at) === "data") {
      const isPcm = format?.coding === 1 && format.bits === 16 && format.channels > 0;
      return isPcm ? firstChannel(view, start, size, format) : undefined;
    }
    at = start + size + (size % 2);
  }
  return undefined;
}

function firstChannel(view, start, size, { channels, rate }) {
  const end = Math.min(start + size, view.byteLength); // a file may be cut off
  const samples = new Float32Array(Math.floor((end - start) / (2 * channels)));
  for (let i = 0; i < samples.length; i++) {
    samples[i] = view.getInt16(start + 2 * channels * i, true) / 32768;
  }
  return { samples, rate };
}
