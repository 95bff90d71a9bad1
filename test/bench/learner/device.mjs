/**
 * The simulated devices: what they are, how fast they are, what they say. Their time has nothing in common with the model that
 * the learner fits (a constant and a price per byte):
 *
 *   - a layer's misses m of one token, binomial over its K slots, are read by lanes that two or three reads keep busy, after
 *     a seek, while the layer's compute hides some of it: stall(m) = max(0, seek + m bytes / (speed x lanes(m)) - hidden);
 *   - `card` devices, the class that the learner's model cannot fit: the faster they are read the slower they get, as their
 *     controller collects garbage, so that a byte's price depends on how many are read;
 *   - heat: compute is slower by `throttle` in some windows, for as long as they last;
 *   - noise multiplies the time of a window, log-normal, with now and then a pause.
 */
import { mean } from '../reproduce/statistics.mjs';
import { normal, pick } from './random.mjs';

const MB = 1e6;
const lanes = [0, 0.6, 0.85, 1, 1];

/** `share` of the fleet; ranges are drawn from evenly, in their logarithm. Bytes per second, milliseconds. */
export const CLASSES = {
  jetson: { share: 0.3, computeMs: [15, 30], speed: [700 * MB, 2000 * MB], seekMs: [0.05, 0.1], hiddenMs: [0.1, 0.4], noise: [0.02, 0.06], throttle: 0.15, memory: [10, 30] },
  phone: { share: 0.3, computeMs: [30, 70], speed: [400 * MB, 1200 * MB], seekMs: [0.1, 0.25], hiddenMs: [0.3, 1], noise: [0.04, 0.15], throttle: 0.5, memory: [8, 22] },
  minipc: { share: 0.25, computeMs: [20, 50], speed: [150 * MB, 350 * MB], seekMs: [0.15, 0.4], hiddenMs: [0.2, 0.6], noise: [0.02, 0.08], throttle: 0.1, memory: [12, 28] },
  card: { share: 0.15, computeMs: [60, 120], speed: [60 * MB, 110 * MB], seekMs: [0.4, 1], hiddenMs: [0.5, 1.5], noise: [0.05, 0.15], throttle: 0.2, memory: [8, 20], collects: true },
};

const fromRange = (random, [low, high]) => Math.exp(Math.log(low) + random() * (Math.log(high) - Math.log(low)));

/**
 * A fleet of `count`. A share of them, `lying`, are suspects, or every device of the class `lyingClass` instead: unless `truthful`, they
 * tell of a time or of misses that are three times too small, each as one of its class.
 */
export function makeFleet(random, recording, { count, lying, lyingClass, truthful, expertBytes }) {
  const names = Object.keys(CLASSES);
  return Array.from({ length: count }, (_, i) => {
    const name = pick(random, names.map((one) => CLASSES[one].share), names);
    const of = CLASSES[name];
    const drawn = random() < lying;
    const suspect = lyingClass ? name === lyingClass : drawn;
    const device = {
      id: `device-${i}`, class: name, suspect, lies: suspect && !truthful, expertBytes, random,
      computeMs: fromRange(random, of.computeMs), speed: fromRange(random, of.speed), seekMs: fromRange(random, of.seekMs), hiddenMs: fromRange(random, of.hiddenMs),
      noise: fromRange(random, of.noise), throttle: of.throttle * random(), hot: false, collects: of.collects ?? false,
      capacity: Math.min(recording.experts, Math.floor(fromRange(random, of.memory))), maxLambda: random() < 0.1 ? 0.15 : 1,
    };
    device.mix = drawMix(random, recording.domains);
    return device;
  });
}

/** Mostly one domain, some of the others. */
export function drawMix(random, domains) {
  const main = Math.floor(random() * domains.length);
  const weights = domains.map((_, i) => (i === main ? 3 : 0) + random());
  const total = weights.reduce((sum, one) => sum + one, 0);
  return Object.fromEntries(domains.map((domain, i) => [domain, weights[i] / total]));
}

/** Milliseconds of one token whose slots miss at these rates, without noise; `hot`: throttled. */
export function tokenMs(device, layerMissRates, topK, hot = false) {
  const compute = device.computeMs * (hot ? 1 + device.throttle : 1);
  const stalls = (speed) => layerMissRates.reduce((sum, rate) => sum + layerStall(device, rate, topK, speed), 0);
  if (!device.collects) return compute + stalls(device.speed);
  // The speed follows the demand, and the demand the speed: a few steps find where both agree.
  const bytes = layerMissRates.reduce((sum, rate) => sum + rate * topK * device.expertBytes, 0);
  let ms = compute + stalls(device.speed);
  for (let step = 0; step < 8; step += 1) {
    const demand = bytes / (ms / 1000);
    ms = (ms + compute + stalls(device.speed / (1 + (demand / (0.6 * device.speed)) ** 2))) / 2;
  }
  return ms;
}

function layerStall(device, rate, topK, speed) {
  let expected = 0;
  let ways = 1;
  for (let m = 0; m <= topK; m += 1) {
    if (m > 0) {
      const readMs = (m * device.expertBytes) / (speed * lanes[Math.min(m, lanes.length - 1)]) * 1000;
      expected += ways * rate ** m * (1 - rate) ** (topK - m) * Math.max(0, device.seekMs + readMs - device.hiddenMs);
    }
    ways = (ways * (topK - m)) / (m + 1);
  }
  return expected;
}

/** Its mean speed at a setting over its mix of workloads, heat included, noise not. */
export function trueSpeed(device, recording, { capacity, lambda, topJ }) {
  let ms = 0;
  for (const [domain, weight] of Object.entries(device.mix)) {
    const { layerMissRates } = recording.truth(domain, capacity, lambda, topJ);
    ms += weight * (0.7 * tokenMs(device, layerMissRates, recording.topK) + 0.3 * tokenMs(device, layerMissRates, recording.topK, true));
  }
  return 1000 / ms;
}

/** One stretch of decoding: a real window of a text of its mix, and how long the device took. Heat comes and goes, 30% of the time in all. */
export function decodeWindow(device, recording, { capacity, lambda, topJ }) {
  const { random } = device;
  const domain = pick(random, Object.values(device.mix), Object.keys(device.mix));
  const truth = recording.truth(domain, capacity, lambda, topJ);
  const missRate = mean(truth.layerMissRates);
  const window = truth.windows[Math.floor(random() * truth.windows.length)];
  const rates = truth.layerMissRates.map((rate) => (missRate > 0 ? Math.min(1, rate * window / missRate) : 0));
  device.hot = random() < (device.hot ? 0.7 : 0.13);
  const pause = random() < 0.02 ? 1.5 : 1;
  const ms = tokenMs(device, rates, recording.topK, device.hot) * Math.exp(device.noise * normal(random)) * pause;
  return { tokens: recording.context, ms, rates, computeMs: device.computeMs * (device.hot ? 1 + device.throttle : 1) };
}
