/**
 * A recorded run as the engine's replay takes it, from any of its sources: a route file (which experts were chosen), or
 * router windows (what the routers said). Windows follow one another as if nothing lay between them; a cache carries on
 * from one to the next, as the device's own does.
 */
import { type RouteTrace, unpackWindow, WindowFormatError } from '@moefleet/edge-agent/engine';
import { EffectiveSpec, RouterEncoding, type RouterWindow, Routing } from '@moefleet/proto';
import { parseRoutes } from './route-file';
import { TraceError } from './trace-error';
import { isWindowFile, readWindowFile } from './window-file';

export interface Trace extends RouteTrace {
  /** for messages: a file, a device */
  source: string;
  kind: 'routes' | 'scores' | 'quantised scores';
  /** block index of each MoE layer, in the order of `layerEvents` */
  layers: number[];
  /** of one expert, per layer; null where the record does not say */
  expertBytes: number[] | null;
  /** what was in force while the scores were recorded; null: not known, or different from window to window */
  recorded: EffectiveSpec | null;
  /** whether any of it was recorded under a routing that followed the cache */
  bent: boolean;
  /** windows left out, and why */
  skipped: string[];
  phase: number | null;
}

/** `phase`: of a route file. Throws TraceError. */
export async function readTrace(path: string, bytes: Buffer, phase: number | null): Promise<Trace> {
  if (isWindowFile(bytes)) return traceOfWindows(path, readWindowFile(path, bytes));
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new TraceError(`${path} is neither a route file (text) nor a file of router windows; record one with: moefleet engine eval --record-windows FILE`);
  }
  return traceOfRoutes(path, text, phase);
}

/** Throws TraceError. */
export function traceOfRoutes(path: string, text: string, phase: number | null): Trace {
  const parsed = parseRoutes(path, text, phase);
  return { source: path, kind: 'routes', recorded: null, bent: false, skipped: [], ...parsed };
}

/**
 * The windows of the model that most of their tokens are of, oldest first. Those of other models, and those that cannot be
 * read, are left out and named. Throws TraceError where none is left.
 */
export async function traceOfWindows(source: string, windows: readonly RouterWindow[]): Promise<Trace> {
  const skipped: string[] = [];
  const shape = commonest(windows.filter((window) => window.topK > 0 && window.moeLayers.length === window.layers));
  const parts: { window: RouterWindow; rows: Buffer }[] = [];
  // A sort keeps the order of windows taken in the same millisecond.
  for (const window of [...windows].sort((a, b) => Number(a.timeMs - b.timeMs))) {
    if (shapeOf(window) !== shape) {
      skipped.push(window.topK === 0 ? `window ${window.windowId}: of an earlier agent, which does not say how many experts a token takes` : `window ${window.windowId}: of another model, ${window.modelHash.slice(0, 12)}, or in another encoding`);
      continue;
    }
    try {
      const { rows, scores } = await unpackWindow(window);
      const raw = rows ?? new Uint8Array(scores!.buffer, scores!.byteOffset, scores!.byteLength);
      parts.push({ window, rows: Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength) });
    } catch (error) {
      if (!(error instanceof WindowFormatError)) throw error;
      skipped.push(error.message);
    }
  }
  const first = parts[0]?.window;
  if (!first) throw new TraceError(`${source}: no router window that can be replayed${skipped.length ? ` (${skipped[0]})` : ''}; have a device record some with: moefleet windows enable DEVICE`);
  return { source, ...joined(parts, first), skipped };
}

function joined(parts: readonly { window: RouterWindow; rows: Buffer }[], first: RouterWindow): Omit<Trace, 'source' | 'skipped'> {
  const rows = Buffer.concat(parts.map((part) => part.rows));
  const tokens = parts.reduce((sum, { window }) => sum + window.tokens, 0);
  const exact = first.encoding === RouterEncoding.ROUTER_ENCODING_FLOAT32;
  const [spec] = parts.map(({ window }) => window.spec);
  const alike = parts.every(({ window }) => sameSpec(window.spec, spec));
  return {
    kind: exact ? 'scores' : 'quantised scores', experts: first.experts, topK: first.topK, layers: first.moeLayers, layerEvents: first.moeLayers.map(() => tokens),
    rows: exact ? null : rows, rowsMask: first.encoding === RouterEncoding.ROUTER_ENCODING_MASKED_BYTES, scores: exact ? new Float32Array(Uint8Array.from(rows).buffer) : null,
    expertBytes: first.expertBytes.length === first.layers ? first.expertBytes.map(Number) : null,
    recorded: alike && spec ? spec : null,
    bent: parts.some(({ window }) => isBent(window)),
    phase: null,
  };
}

function isBent({ spec, lambda }: RouterWindow): boolean {
  if (!spec) return lambda > 0;
  if (spec.routing === Routing.ROUTING_ORIGINAL) return false;
  return spec.routing !== Routing.ROUTING_CACHE_PRIOR || spec.lambda > 0 || spec.lambdas.some((each) => each > 0);
}

function shapeOf({ modelHash, experts, topK, moeLayers, encoding }: RouterWindow): string {
  return JSON.stringify([modelHash, experts, topK, moeLayers, encoding]);
}

function commonest(windows: readonly RouterWindow[]): string | null {
  const tokens = new Map<string, number>();
  for (const window of windows) tokens.set(shapeOf(window), (tokens.get(shapeOf(window)) ?? 0) + window.tokens);
  return [...tokens].sort(([, a], [, b]) => b - a)[0]?.[0] ?? null;
}

function sameSpec(a: EffectiveSpec | undefined, b: EffectiveSpec | undefined): boolean {
  if (!a || !b) return a === b;
  return Buffer.compare(EffectiveSpec.encode(a).finish(), EffectiveSpec.encode(b).finish()) === 0;
}
