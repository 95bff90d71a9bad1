/** What one arm did in one run, token by token, and the figures that come of it. */
import { EVAL_STEP, EVAL_STEP_FIELDS } from '@moefleet/edge-agent/engine';
import type { DecodeOutcome } from '../engine/engine-job';

export interface DecodedToken {
  startNs: number; endNs: number;
  nll: number;
  /** null where the library does not say */
  engine: { slots: number; misses: number; flashBytes: number; stallNs: number } | null;
}

export interface Decoded {
  tokens: DecodedToken[];
  peakRssBytes: number;
  cpuSeconds: number;
  /** why the run does not count; null where it does */
  void: string | null;
}

export interface Figures {
  tokens: number;
  msPerToken: number;
  tokensPerSecond: number;
  missRate: number | null;
  flashBytesPerToken: number | null;
  /** while the arithmetic stood still for the disk; null where it never did */
  readBytesPerSecond: number | null;
  /** of the time, spent standing still for the disk */
  stallShare: number | null;
  /** nats per token */
  crossEntropy: number;
}

export function decodedByEngine({ result, memory, peakRssBytes, cpuSeconds }: DecodeOutcome, slotsPerToken: number): Decoded {
  const steps = result.steps!;
  const tokens = Array.from(result.tokenNll, (nll, i) => {
    const at = (field: keyof typeof EVAL_STEP) => steps[i * EVAL_STEP_FIELDS + EVAL_STEP[field]]!;
    return { startNs: at('startNs'), endNs: at('endNs'), nll, engine: { slots: slotsPerToken, misses: at('misses'), flashBytes: at('flashBytes'), stallNs: at('stallNs') } };
  });
  return {
    tokens, peakRssBytes, cpuSeconds,
    void: memory.directIo ? null : 'reads went through the page cache: the file system refuses O_DIRECT, or the arm turned it off',
  };
}

/** `text` is what `moefleet_bench stock` prints. */
export function decodedByStock(text: string): Decoded {
  const { startNs, endNs, nll, ...rest } = JSON.parse(text) as { startNs: number[]; endNs: number[]; nll: number[]; peakRssBytes: number; cpuSeconds: number };
  return { tokens: startNs.map((start, i) => ({ startNs: start, endNs: endNs[i]!, nll: nll[i]!, engine: null })), ...rest, void: null };
}

/** Of the tokens from `first` up to `end`; null where there are none. */
export function figuresOf({ tokens }: Decoded, first: number, end = tokens.length): Figures | null {
  const part = tokens.slice(first, end);
  if (part.length === 0) return null;
  const elapsedNs = part.at(-1)!.endNs - part[0]!.startNs;
  const sum = (of: (token: DecodedToken) => number) => part.reduce((total, token) => total + of(token), 0);
  const engine = part.every((token) => token.engine !== null);
  const flashBytes = sum((token) => token.engine?.flashBytes ?? 0);
  const stallNs = sum((token) => token.engine?.stallNs ?? 0);
  return {
    tokens: part.length,
    msPerToken: elapsedNs / part.length / 1e6,
    tokensPerSecond: part.length / (elapsedNs / 1e9),
    missRate: engine ? sum((token) => token.engine!.misses) / sum((token) => token.engine!.slots) : null,
    flashBytesPerToken: engine ? flashBytes / part.length : null,
    readBytesPerSecond: engine && stallNs > 0 ? flashBytes / (stallNs / 1e9) : null,
    stallShare: engine ? stallNs / elapsedNs : null,
    crossEntropy: sum((token) => token.nll) / part.length,
  };
}
