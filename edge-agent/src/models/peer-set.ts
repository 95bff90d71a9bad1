/**
 * The devices beside this one that fetch or hold the same model, and which of them is asked for which chunk, so that a site
 * downloads once. Each chunk has one responsible device by rendezvous hashing (Thaler and Ravishankar 1998) over those that are
 * well, this one included: it alone fetches the chunk from the coordinator, the others wait for it. Whoever holds all of the model is
 * asked before anybody, so that a latecomer moves nothing over the site's link.
 *
 * A device that does not move for a while counts as absent, and the next in rank takes its chunks; one that fails several times is
 * left alone for some time; one that sent wrong bytes for good.
 */
import { createHash } from 'node:crypto';
import type { ModelPeer } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { BlobClient } from './blob-client';
import type { Chunk } from './manifest';

const STALL_MS = 30_000;
/** On a slow link that a site shares, of what a chunk takes this device. */
const STALL_CHUNKS = 4;
const NOT_YET_MS = 1_000;
/** Of a device that has been asked in vain several times; twenty that ask each other every second do little else. */
const NOT_YET_MOST_MS = 8_000;
const FAILURES = 3;
const ASIDE_MS = 5 * 60_000;
const BEAT_MS = 1_000;
/** Between two beats: this device itself stood still, suspended or starved. */
const STOOD_STILL_MS = 10_000;
/** Of the devices that would be responsible were this one not here: they may have been so before it came. */
const ASKED_BEFORE = 2;

export interface Peer {
  readonly id: string;
  readonly address: string;
  readonly client: BlobClient;
  whole: boolean;
  /** not asked before then */
  notBeforeMs: number;
  /** in a row: asked in vain, and failed */
  inVain: number;
  failures: number;
  asideUntilMs: number;
  /** what it last said it has, and when that last grew; Infinity before it has been asked */
  held: number;
  movedMs: number;
}

export type NextFetch =
  | { t: 'peer'; chunk: Chunk; peer: Peer }
  /** `before`: who may have it already and is asked first */
  | { t: 'coordinator'; chunk: Chunk; before: Peer[] }
  | { t: 'wait'; ms: number };

export interface PeerSetOptions {
  selfId: string;
  connect: (id: string, address: string) => BlobClient;
  now: () => number;
  random: () => number;
  log: Logger;
  stallMs?: number;
}

export class PeerSet {
  private readonly peers = new Map<string, Peer>();
  private readonly liars = new Set<string>();
  private wake: () => void = () => {};
  private turn = 0;
  private beat: NodeJS.Timeout | null = null;
  private beatMs = 0;
  private stallMs: number;

  constructor(private readonly options: PeerSetOptions) {
    this.stallMs = options.stallMs ?? STALL_MS;
  }

  /** Nobody is beside this device. */
  static none(log: Logger): PeerSet {
    return new PeerSet({ selfId: '', now: () => performance.now(), random: Math.random, log, connect: () => { throw new Error('nobody is there'); } });
  }

  update(list: readonly ModelPeer[]): void {
    const { connect } = this.options;
    this.startBeat();
    const named = new Map(list.filter(({ deviceId }) => deviceId !== this.options.selfId && !this.liars.has(deviceId)).map((one) => [one.deviceId, one]));
    for (const [id, peer] of this.peers) if (named.get(id)?.address !== peer.address) this.drop(id);
    for (const [id, { address, whole }] of named) {
      const known = this.peers.get(id);
      if (!known) this.peers.set(id, { id, address, whole, client: connect(id, address), notBeforeMs: 0, inVain: 0, failures: 0, asideUntilMs: 0, held: 0, movedMs: Infinity });
      else if (known.whole !== whole) Object.assign(known, { whole, notBeforeMs: 0, inVain: 0, movedMs: Infinity });
    }
    this.wake();
  }

  /** Resolves when the list has changed. */
  changed(): Promise<void> {
    return new Promise((resolve) => { this.wake = resolve; });
  }

  /** Those that may be asked now and have all of the model. */
  whole(): Peer[] {
    return this.ready().filter((peer) => peer.whole);
  }

  anyReady(): boolean {
    return this.ready().length > 0;
  }

  /** `missing`: not empty, in file order; `room`: most bytes that a chunk may have now by where it comes from, 0: it may not be asked. */
  next(missing: readonly Chunk[], room: { coordinator: number; peer: number }): NextFetch {
    const now = this.options.now();
    for (const peer of this.peers.values()) if (now - peer.movedMs > this.stallMs + ASIDE_MS) peer.movedMs = Infinity;
    const well = [...this.peers.values()].filter((peer) => this.isWell(peer, now));
    const ready = this.ready();
    const forPeers = missing.filter(({ bytes }) => bytes <= room.peer);
    const whole = this.whole();
    if (whole.length > 0 && forPeers.length > 0) return { t: 'peer', chunk: this.any(forPeers), peer: this.any(whole) };
    const owned = this.byOwner(missing, well);
    const firstOf = (id: string, most: number) => owned.get(id)?.find(({ bytes }) => bytes <= most);
    const parts = ready.filter(({ id }) => firstOf(id, room.peer));
    // While somebody has all of it, that one is worth waiting for.
    const own = well.some((peer) => peer.whole) ? undefined : firstOf(this.options.selfId, room.coordinator);
    this.turn += 1;
    // In turn: others wait for what is this one's to bring, and it waits for theirs.
    if (own && (parts.length === 0 || this.turn % 2 === 0)) return { t: 'coordinator', chunk: own, before: this.rank(own, ready).slice(0, ASKED_BEFORE) };
    if (parts.length > 0) {
      const peer = this.any(parts);
      return { t: 'peer', chunk: firstOf(peer.id, room.peer)!, peer };
    }
    const soonest = well.reduce((least, { notBeforeMs }) => Math.min(least, notBeforeMs), Infinity);
    return { t: 'wait', ms: Math.min(Math.max(soonest - now, 20), NOT_YET_MS) };
  }

  /** How long a chunk has taken from the coordinator: as long it takes the others. */
  chunkTook(ms: number): void {
    if (ms > this.stallMs) this.afresh();
    this.stallMs = Math.max(this.stallMs, STALL_CHUNKS * ms);
  }

  /** Nobody could move for a while, so nobody is to be blamed for it. */
  afresh(): void {
    for (const peer of this.peers.values()) peer.movedMs = Infinity;
  }

  delivered(peer: Peer): void {
    Object.assign(peer, { failures: 0, inVain: 0, notBeforeMs: 0, movedMs: this.options.now() });
  }

  /** It is there and does not have the chunk, or has no time. `held`: null where it does not say. */
  notYet(peer: Peer, retryAfterMs: number | null, held: number | null): void {
    const now = this.options.now();
    const waitMs = Math.min((retryAfterMs ?? NOT_YET_MS) * 2 ** peer.inVain, NOT_YET_MOST_MS);
    peer.inVain += 1;
    peer.notBeforeMs = now + waitMs * (0.5 + this.options.random());
    if (peer.movedMs === Infinity || (held !== null && held > peer.held)) Object.assign(peer, { held: held ?? 0, movedMs: now });
  }

  failed(peer: Peer, reason: string): void {
    const now = this.options.now();
    peer.failures += 1;
    peer.notBeforeMs = now + NOT_YET_MS * 2 ** peer.failures;
    if (peer.failures < FAILURES) return;
    peer.failures = 0;
    peer.asideUntilMs = now + ASIDE_MS;
    this.options.log.warn({ peer: peer.id, address: peer.address, reason, forMs: ASIDE_MS }, 'a device beside this one is left alone');
  }

  lied(peer: Peer, reason: string): void {
    this.liars.add(peer.id);
    this.drop(peer.id);
    this.options.log.error({ peer: peer.id, address: peer.address, reason }, 'a device beside this one sent wrong bytes; it is asked no more');
  }

  close(): void {
    if (this.beat) clearInterval(this.beat);
    for (const id of [...this.peers.keys()]) this.drop(id);
    this.wake();
  }

  private ready(): Peer[] {
    const now = this.options.now();
    return [...this.peers.values()].filter((peer) => this.isWell(peer, now) && peer.notBeforeMs <= now);
  }

  /** What passes while this device stands still is nobody else's standstill. */
  private startBeat(): void {
    if (this.beat) return;
    this.beatMs = this.options.now();
    this.beat = setInterval(() => {
      const now = this.options.now();
      if (now - this.beatMs > STOOD_STILL_MS) this.afresh();
      this.beatMs = now;
    }, BEAT_MS).unref();
  }

  private drop(id: string): void {
    this.peers.get(id)?.client.close();
    this.peers.delete(id);
  }

  private isWell(peer: Peer, now: number): boolean {
    return peer.asideUntilMs <= now && now - peer.movedMs < this.stallMs;
  }

  private byOwner(missing: readonly Chunk[], well: readonly Peer[]): Map<string, Chunk[]> {
    const owned = new Map<string, Chunk[]>();
    const seeds = [this.options.selfId, ...well.map(({ id }) => id)].map((id) => ({ id, seed: seedOf(id) }));
    for (const chunk of missing) {
      const at = Number.parseInt(chunk.sha256.slice(0, 8), 16);
      let owner = seeds[0]!;
      for (const one of seeds) if (weight(one.seed, at) > weight(owner.seed, at)) owner = one;
      const list = owned.get(owner.id);
      if (list) list.push(chunk);
      else owned.set(owner.id, [chunk]);
    }
    return owned;
  }

  private rank(chunk: Chunk, peers: readonly Peer[]): Peer[] {
    const at = Number.parseInt(chunk.sha256.slice(0, 8), 16);
    return [...peers].sort((a, b) => weight(seedOf(b.id), at) - weight(seedOf(a.id), at));
  }

  private any<T>(from: readonly T[]): T {
    return from[Math.floor(this.options.random() * from.length)]!;
  }
}

function seedOf(id: string): number {
  return createHash('sha256').update(id).digest().readUInt32LE(0);
}

/** In [0, 2^32), even over devices and chunks: MurmurHash3's last steps over both. */
function weight(seed: number, chunk: number): number {
  let h = seed ^ chunk;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
