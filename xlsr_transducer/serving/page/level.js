// The meter of the sound's level.

const QUIETEST = -60; // dB below full scale, where the meter begins

/** @param {HTMLElement} meter with one element inside, its bar. */
export function showLevel(meter, samples) {
  let sum = 0;
  for (const sample of samples) {
    sum += sample * sample;
  }
  const decibels = 10 * Math.log10(sum / Math.max(samples.length, 1) + 1e-10);
  const share = Math.min(Math.max(1 - decibels / QUIETEST, 0), 1);
  meter.firstElementChild.style.transform = `scaleX(${share})`;
  meter.setAttribute("aria-valuenow", Math.round(share * 100));
}
