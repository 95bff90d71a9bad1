/**
 * What a device did between two telemetry frames of one boot, or why that must not be learnt from. Telemetry is untrusted:
 * a frame that contradicts itself, the frame before it or the arithmetic of the model is set aside with a reason.
 */
import type { TelemetryFrame } from '@moefleet/proto';
import { MIB, type ModelShape } from './setting';

/** Sums over decoded tokens, save where it says otherwise. */
export interface TelemetryWindow {
  readonly tokens: number;
  readonly decodeNs: number;
  /** bytes that decode's misses had to have read */
  readonly missBytes: number;
  /** time the compute thread stood still per byte read; null where that cannot be told for decode alone */
  readonly stallNsPerByte: number | null;
  /** mean time of one read and mean bytes of one; 0 where there was none */
  readonly readNs: number;
  readonly readBytes: number;
  readonly layers: readonly LayerWindow[];
  /** mean softmax mass lost per routing event */
  readonly massLost: number;
}

export interface LayerWindow { readonly hits: number; readonly misses: number; readonly swaps: number; readonly capacity: number }

export type WindowOutcome =
  | { t: 'window'; window: TelemetryWindow }
  /** nothing was decoded, or no frame of this boot came before */
  | { t: 'nothing' }
  /** not to be learnt from: the device contradicts itself */
  | { t: 'quarantine'; reason: string }
  /** not to be learnt from, and no fault of the device */
  | { t: 'unclear'; reason: string };

/** Counters are read while a token is under way, and a request that fails has routed tokens that never came out. */
const SLACK_TOKENS = 16;
const SLACK_SHARE = 0.02;
/** Below it a window says little about speed. */
const LEAST_TOKENS = 16;
/** For engines that read more than they count misses of; ours counts each expert it read as one miss. */
const MOST_UNEXPLAINED = 1.5;
/** Where prompts read more than that share of the bytes, stalls are theirs. */
const MOST_PROMPT_SHARE = 0.5;
/** No token that decodes takes an hour, and no device decodes faster than this: counters are not trusted beyond. */
const MOST_TOKENS_PER_SECOND = 100_000;

/** `before` undefined: the first frame of its boot. `leastSlots`: per token and layer, where the routing leaves out some of its experts. */
export function windowBetween(before: TelemetryFrame | undefined, after: TelemetryFrame, shape: ModelShape, leastSlots = shape.topK): WindowOutcome {
  // An agent whose engine has not answered yet tells of no layers.
  if (after.layers.length === 0) return { t: 'nothing' };
  const wrong = impossible(after, shape) ?? (before && before.layers.length > 0 ? impossible(before, shape) ?? fallen(before, after) : undefined);
  if (wrong) return { t: 'quarantine', reason: wrong };
  if (!before || after.sequence <= before.sequence || before.layers.length !== after.layers.length) return { t: 'nothing' };
  const gained = (read: (frame: TelemetryFrame) => bigint) => Number(read(after) - read(before));
  const tokens = gained((frame) => frame.decodeTokens);
  if (tokens < LEAST_TOKENS) return { t: 'nothing' };

  const decodeNs = gained((frame) => frame.decodeNs);
  const layers = after.layers.map((layer, i) => ({
    hits: Number(layer.hits - before.layers[i]!.hits), misses: Number(layer.misses - before.layers[i]!.misses), swaps: Number(layer.swaps - before.layers[i]!.swaps), capacity: layer.capacity,
    prefillMisses: Number(layer.prefillMisses - before.layers[i]!.prefillMisses),
    events: Number(layer.events - before.layers[i]!.events), massLost: layer.massLost - before.layers[i]!.massLost,
  }));
  const inconsistent = slotsWrong(layers, tokens, shape, leastSlots) ?? timeWrong(before, after, tokens, decodeNs);
  if (inconsistent) return { t: 'quarantine', reason: inconsistent };

  const missBytes = layers.reduce((sum, { misses }, i) => sum + misses * shape.expertBytes[i]!, 0);
  const promptBytes = layers.reduce((sum, { prefillMisses }, i) => sum + prefillMisses * shape.expertBytes[i]!, 0);
  const flashBytes = gained((frame) => frame.flashBytes);
  const held = layers.reduce((sum, { capacity }, i) => sum + capacity * shape.expertBytes[i]!, 0);
  // A prompt's misses count as its layers are reached, its bytes when all of a pass is done.
  const onePass = shape.expertBytes.reduce((sum, bytes) => sum + shape.experts * bytes, 0);
  if (flashBytes < (missBytes + Math.max(promptBytes - onePass, 0)) * (1 - SLACK_SHARE) - slackBytes(shape)) {
    return { t: 'quarantine', reason: `it counts misses of ${mib(missBytes + promptBytes)} and reads of ${mib(flashBytes)}: it cannot have read what it missed` };
  }
  const evaluationBytes = evaluatedBetween(before, after);
  if (evaluationBytes !== null && flashBytes - evaluationBytes > (missBytes + promptBytes) * MOST_UNEXPLAINED + onePass) {
    return { t: 'quarantine', reason: `it read ${mib(flashBytes - evaluationBytes)}, of which its misses explain ${mib(missBytes + promptBytes)}: its hits are not what it says` };
  }
  if (flashBytes > (missBytes + promptBytes) * MOST_UNEXPLAINED + held) {
    return { t: 'unclear', reason: `it read ${mib(flashBytes)}, of which its misses explain ${mib(missBytes + promptBytes)}: it was measured meanwhile, or its hits are not what it says` };
  }
  const reads = gained((frame) => frame.flashReads);
  const events = layers.reduce((sum, layer) => sum + layer.events, 0);
  const plain = promptBytes <= MOST_PROMPT_SHARE * (missBytes + promptBytes);
  return {
    t: 'window',
    window: {
      tokens, decodeNs, missBytes,
      stallNsPerByte: plain && missBytes > 0 && flashBytes > 0 ? gained((frame) => frame.stallNs) / flashBytes : null,
      readNs: reads > 0 ? readNs(before, after) : 0,
      readBytes: reads > 0 ? flashBytes / reads : 0,
      layers: layers.map(({ hits, misses, swaps, capacity }) => ({ hits, misses, swaps, capacity })),
      massLost: events > 0 ? layers.reduce((sum, layer) => sum + layer.massLost, 0) / events : 0,
    },
  };
}

/** Bytes read to score a text; null where that is not told, or where an engine that started meanwhile may have had another model. */
function evaluatedBetween(before: TelemetryFrame, after: TelemetryFrame): number | null {
  if (before.evaluationBytes === undefined || after.evaluationBytes === undefined || before.hostStarts !== after.hostStarts) return null;
  return Number(after.evaluationBytes - before.evaluationBytes);
}

/** What no frame can say, whatever came before. */
function impossible(frame: TelemetryFrame, shape: ModelShape): string | undefined {
  if (frame.layers.length !== shape.expertBytes.length) return `it counts for ${frame.layers.length} layers, its model has ${shape.expertBytes.length}`;
  for (const layer of frame.layers) {
    for (const name of ['massLost', 'rangeMean'] as const) {
      if (!Number.isFinite(layer[name]) || layer[name] < 0) return `layer ${layer.layer}: ${name} is ${layer[name]}, expected a number from 0`;
    }
    // Mass lost is at most 1 per event.
    if (layer.massLost > Number(layer.events) * (1 + 1e-6) + 1e-6) return `layer ${layer.layer}: ${layer.massLost} of mass lost in ${layer.events} events, expected at most one per event`;
    if (layer.capacity > shape.experts || layer.resident > shape.experts) return `layer ${layer.layer}: ${layer.capacity} experts of capacity, the model has ${shape.experts}`;
  }
  return undefined;
}

const FRAME_COUNTERS = ['decodeTokens', 'decodeNs', 'prefillTokens', 'prefillNs', 'stallNs', 'flashBytes', 'flashReads'] as const;
const LAYER_COUNTERS = ['hits', 'misses', 'swaps', 'prefillMisses', 'events', 'massLost'] as const;

function fallen(before: TelemetryFrame, after: TelemetryFrame): string | undefined {
  if (after.sequence <= before.sequence) return undefined;
  const counter = FRAME_COUNTERS.find((name) => after[name] < before[name]);
  if (counter) return `${counter} fell from ${before[counter]} to ${after[counter]} within a boot`;
  for (const [i, layer] of after.layers.entries()) {
    const earlier = before.layers[i];
    if (!earlier || earlier.layer !== layer.layer) continue;
    const fell = LAYER_COUNTERS.find((name) => layer[name] < earlier[name]);
    if (fell) return `layer ${layer.layer}: ${fell} fell from ${earlier[fell]} to ${layer[fell]} within a boot`;
  }
  return undefined;
}

function slotsWrong(layers: readonly { hits: number; misses: number; events: number }[], tokens: number, shape: ModelShape, leastSlots: number): string | undefined {
  const slack = SLACK_TOKENS + SLACK_SHARE * tokens;
  for (const [i, { hits, misses, events }] of layers.entries()) {
    const slots = hits + misses;
    if (Math.abs(events - tokens) > slack) return `layer ${i + 1} of ${layers.length}: ${events} routing events for ${tokens} decoded tokens`;
    if (slots > (tokens + slack) * shape.topK || slots < tokens * leastSlots - slack * shape.topK) {
      return `layer ${i + 1} of ${layers.length}: ${hits} hits and ${misses} misses are ${slots} slots, ${tokens} tokens of top ${shape.topK} make ${tokens * shape.topK}`;
    }
  }
  return undefined;
}

function timeWrong(before: TelemetryFrame, after: TelemetryFrame, tokens: number, decodeNs: number): string | undefined {
  if (decodeNs < (tokens / MOST_TOKENS_PER_SECOND) * 1e9) return `${tokens} tokens in ${decodeNs} ns of decoding`;
  const wallMs = Number(after.timeMs - before.timeMs);
  // The wall clock of a device may be set; only a plain contradiction counts.
  if (wallMs > 0 && decodeNs / 1e6 > wallMs * 1.2 + 5000) return `${Math.round(decodeNs / 1e6)} ms of decoding within ${wallMs} ms`;
  return undefined;
}

/** Mean over the histogram, a read of up to 2^i µs taken as three quarters of it. */
function readNs(before: TelemetryFrame, after: TelemetryFrame): number {
  let count = 0;
  let sum = 0;
  after.readMicrosLog2.forEach((total, i) => {
    const gained = Math.max(Number(total - (before.readMicrosLog2[i] ?? 0n)), 0);
    count += gained;
    sum += gained * 0.75 * 2 ** i * 1000;
  });
  return count > 0 ? sum / count : 0;
}

/** What one token under way may have counted as missed and not yet read. */
function slackBytes(shape: ModelShape): number {
  return shape.expertBytes.reduce((sum, bytes) => sum + shape.topK * bytes, 0);
}

function mib(bytes: number): string {
  return `${(bytes / MIB).toFixed(1)} MiB`;
}
