/**
 * What devices have counted: each one's latest frame and recent history, and the sums over the fleet, by model and by
 * class. Counting is one script per shard and call (count-script.ts), so that a frame is never counted twice and a
 * thousand devices do not cost a thousand round trips. All of it is bounded: per device a record of a few boots, a
 * ring of 60 points and one frame; per shard a bounded number of names.
 */
import { type TelemetryFrame, TelemetryFrame as Frame } from '@moefleet/proto';
import { COUNTERS, FRAME_OUTCOMES, RING_COUNTERS, RING_POINT_BYTES, RING_POINTS } from './count-script';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export type Counter = typeof COUNTERS[number];
export type Totals = Record<Counter, bigint>;
export type FrameOutcome = typeof FRAME_OUTCOMES[number];

export interface CountedFrame {
  deviceId: string;
  bootId: string;
  /** hash of the model it has loaded, '' for none */
  model: string;
  /** its label `class`, '' for none */
  class: string;
  frame: TelemetryFrame;
}

export interface HistoryPoint extends Record<typeof RING_COUNTERS[number], number> { timeMs: number }

export interface FleetSums {
  all: Totals;
  byModel: ReadonlyMap<string, Totals>;
  byClass: ReadonlyMap<string, Totals>;
  frames: Record<FrameOutcome, bigint>;
  boots: bigint;
  /** oldest first */
  recent: HistoryPoint[];
}

/** Counters from here on are not exact in Lua; no device gets there by counting. */
const MOST_COUNT = 2n ** 53n - 1n;
export const HISTORY_STEP_MS = 10_000;
/** Per shard and kind; what comes after is summed as `other`. */
const MOST_NAMES = 64;
/** A device that is away for longer begins anew with what its boot has counted. */
const KEEP_RECORD_SECONDS = 30 * 86_400;
const KEEP_RING_SECONDS = 2 * RING_POINTS * HISTORY_STEP_MS / 1000;
/** One call of the script blocks Redis for about 15 µs per frame. */
const MOST_FRAMES_PER_CALL = 128;

export class TelemetryStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly mostNames = MOST_NAMES) {}

  /** The outcome of each frame; an Error for those that Redis did not take. No device may be there twice. */
  async count(frames: readonly CountedFrame[], nowMs = Date.now()): Promise<(FrameOutcome | Error)[]> {
    const outcomes = new Array<FrameOutcome | Error>(frames.length);
    const byShard = new Map<number, number[]>();
    for (const [at, { deviceId, frame }] of frames.entries()) {
      if (!countable(frame)) {
        outcomes[at] = 'refused';
        continue;
      }
      const shard = this.keys.shardOf(deviceId);
      const places = byShard.get(shard);
      if (places) places.push(at);
      else byShard.set(shard, [at]);
    }
    await Promise.all([...byShard].flatMap(([shard, places]) => parts(places).map(async (part) => {
      const answer = await this.countPart(shard, part.map((at) => frames[at]!), nowMs).catch((error: Error) => error);
      for (const [i, at] of part.entries()) outcomes[at] = answer instanceof Error ? answer : FRAME_OUTCOMES[Number(answer[i])]!;
    })));
    return outcomes;
  }

  /** The latest frame; undefined for a device that has sent none. Throws what `TelemetryFrame.decode` throws. */
  async latestBytes(deviceId: string): Promise<Buffer | null> {
    const key = this.keys.frame(deviceId);
    return this.link.run(key, (client) => client.getBuffer(key));
  }

  async history(deviceId: string): Promise<HistoryPoint[]> {
    return decodeRing(await this.bytes(this.keys.ring(deviceId)), Date.now());
  }

  async sums(): Promise<FleetSums> {
    const shards = await Promise.all(this.keys.shards.map(async (shard) => {
      const key = this.keys.sums(shard);
      const [fields, ring] = await Promise.all([this.link.run(key, (client) => client.hgetall(key)), this.bytes(this.keys.sumsRing(shard))]);
      return { fields, ring: decodeRing(ring, Date.now()) };
    }));
    const sums = { all: noTotals(), byModel: new Map<string, Totals>(), byClass: new Map<string, Totals>(), frames: { counted: 0n, duplicate: 0n, refused: 0n, damaged: 0n }, boots: 0n };
    for (const { fields } of shards) for (const [field, text] of Object.entries(fields)) addField(sums, field, text);
    return { ...sums, recent: mergeRings(shards.map(({ ring }) => ring)) };
  }

  private async countPart(shard: number, frames: readonly CountedFrame[], nowMs: number): Promise<unknown[]> {
    const keys = [this.keys.sums(shard), this.keys.sumsRing(shard)];
    const args: (string | number | Buffer)[] = [Math.floor(nowMs / HISTORY_STEP_MS), this.mostNames, KEEP_RECORD_SECONDS, KEEP_RING_SECONDS];
    for (const { deviceId, bootId, model, class: className, frame } of frames) {
      keys.push(this.keys.counted(deviceId), this.keys.ring(deviceId), this.keys.frame(deviceId));
      const totals = totalsOf(frame);
      args.push(bootId, String(frame.sequence), model || 'none', className || 'none', ...COUNTERS.map((name) => String(totals[name])), Buffer.from(Frame.encode(frame).finish()));
    }
    return await this.link.script(LUA.countFrames, keys, args) as unknown[];
  }

  private bytes(key: string): Promise<Buffer | null> {
    return this.link.run(key, (client) => client.getBuffer(key));
  }
}

/** What a frame counts. Agents that do not tell the sums over all layers of the boot tell those of the loaded model. */
export function totalsOf(frame: TelemetryFrame): Totals {
  const slots = { hits: 0n, misses: 0n, swaps: 0n };
  for (const layer of frame.decodeSlots ? [] : frame.layers) {
    slots.hits += layer.hits;
    slots.misses += layer.misses;
    slots.swaps += layer.swaps;
  }
  const { decodeTokens, prefillTokens, flashBytes, requests, requestsFailed } = frame;
  return { decodeTokens, prefillTokens, ...(frame.decodeSlots ?? slots), flashBytes, requests, requestsFailed };
}

export function noTotals(): Totals {
  return Object.fromEntries(COUNTERS.map((name) => [name, 0n])) as Totals;
}

function countable(frame: TelemetryFrame): boolean {
  return frame.sequence <= MOST_COUNT && Object.values(totalsOf(frame)).every((value) => value <= MOST_COUNT);
}

function parts(places: readonly number[]): number[][] {
  const cut: number[][] = [];
  for (let at = 0; at < places.length; at += MOST_FRAMES_PER_CALL) cut.push(places.slice(at, at + MOST_FRAMES_PER_CALL));
  return cut;
}

/** Whatever is no ring of ours reads as an empty one. */
function decodeRing(bytes: Buffer | null, nowMs: number): HistoryPoint[] {
  const points: HistoryPoint[] = [];
  const newest = Math.floor(nowMs / HISTORY_STEP_MS);
  for (let at = 0; bytes && at + RING_POINT_BYTES <= Math.min(bytes.length, RING_POINTS * RING_POINT_BYTES); at += RING_POINT_BYTES) {
    const step = bytes.readUInt32LE(at);
    if (step <= newest - RING_POINTS || step > newest + 1) continue;
    const values = RING_COUNTERS.map((name, i) => [name, bytes.readFloatLE(at + 4 + 4 * i)] as const);
    if (values.some(([, value]) => !Number.isFinite(value))) continue;
    points.push({ timeMs: step * HISTORY_STEP_MS, ...Object.fromEntries(values) } as HistoryPoint);
  }
  return points.sort((a, b) => a.timeMs - b.timeMs);
}

function mergeRings(rings: readonly HistoryPoint[][]): HistoryPoint[] {
  const merged = new Map<number, HistoryPoint>();
  for (const point of rings.flat()) {
    const sum = merged.get(point.timeMs);
    if (sum) for (const name of RING_COUNTERS) sum[name] += point[name];
    else merged.set(point.timeMs, { ...point });
  }
  return [...merged.values()].sort((a, b) => a.timeMs - b.timeMs);
}

/** Fields of another form are nobody's and left out. */
function addField(sums: Omit<FleetSums, 'recent'> & { byModel: Map<string, Totals>; byClass: Map<string, Totals> }, field: string, text: string): void {
  if (!/^\d{1,19}$/.test(text)) return;
  const value = BigInt(text);
  const [kind, name, counter] = field.split('|');
  if (kind === 'boots') sums.boots += value;
  else if (kind === 'frames') { if (FRAME_OUTCOMES[Number(name)]) sums.frames[FRAME_OUTCOMES[Number(name)]!] += value; }
  else if (kind === 'all') { if (isCounter(name)) sums.all[name] += value; }
  else if ((kind === 'model' || kind === 'class') && isCounter(counter)) {
    const into = kind === 'model' ? sums.byModel : sums.byClass;
    const totals = into.get(name!) ?? noTotals();
    totals[counter] += value;
    into.set(name!, totals);
  }
}

function isCounter(name: string | undefined): name is Counter {
  return (COUNTERS as readonly string[]).includes(name ?? '');
}
