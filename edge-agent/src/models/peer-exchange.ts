/**
 * This device among those on its network: tells the coordinator what it holds of models and where it serves that, takes from it who
 * else does, and lets only those in. Without certificates nobody can be told from anybody, so that it stays off then unless an
 * address was given for it or the coordinator is on this machine.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { PeerCertificate } from 'node:tls';
import { ModelHolding, type ModelPeers } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { BlobClient } from './blob-client';
import type { Holdings } from './holdings';
import { PeerListener, type ServerIdentity } from './peer-listener';
import { PeerSet } from './peer-set';

/** Without an answer by then the coordinator knows of nobody, or of no such question. */
const ANSWER_MS = 3_000;
/** On one network; the coordinator has what a device does not give. */
const PEER_SILENCE_MS = 10_000;

export interface PeerExchangeOptions {
  deviceId: string;
  /** null: all interfaces where there are certificates, else those of `plainHost` */
  listen: { host: string; port: number } | null;
  /** where to listen without certificates and without an address given; null: nowhere */
  plainHost: string | null;
  /** of this device; null without certificates, and `'cannot serve'` with one that is not for serving */
  identity: () => ServerIdentity | null | 'cannot serve';
  holdings: Holdings;
  send: (holding: ModelHolding) => void;
  log: Logger;
  random?: () => number;
}

export class PeerExchange {
  private listener: PeerListener | null = null;
  private opening: Promise<void> | null = null;
  private served: ServerIdentity | null = null;
  private readonly named = new Map<string, ModelPeers>();
  private readonly sets = new Map<string, PeerSet>();
  private readonly answered = new Map<string, () => void>();
  private connected = false;

  constructor(private readonly options: PeerExchangeOptions) {}

  /** A coordinator that keeps models is there: it is told all over again. */
  async online(): Promise<void> {
    this.connected = true;
    this.opening ??= this.open();
    await this.opening;
    for (const id of new Set([...this.options.holdings.ids(), ...this.sets.keys()])) this.tell(id);
  }

  offline(): void {
    this.connected = false;
  }

  /** Who may be asked for a model from now on, until `end`. Resolves when the coordinator has named them, or has not. */
  async begin(id: string): Promise<PeerSet> {
    const { deviceId, log, random = Math.random } = this.options;
    const set = new PeerSet({ selfId: deviceId, now: () => performance.now(), random, log, connect: (peerId, address) => this.connect(peerId, address) });
    this.sets.set(id, set);
    const known = this.named.get(id);
    if (known) set.update(known.peers);
    await this.opening;
    const answer = new Promise<void>((resolve) => this.answered.set(id, resolve));
    if (this.tell(id) && !known) {
      const timer = new AbortController();
      await Promise.race([answer, delay(ANSWER_MS, undefined, { signal: timer.signal })]);
      timer.abort();
    }
    this.answered.delete(id);
    return set;
  }

  /** What this device has of the model is told, as it is now. */
  end(id: string): void {
    this.sets.get(id)?.close();
    this.sets.delete(id);
    this.tell(id);
  }

  receive(list: ModelPeers): void {
    this.named.set(list.manifestSha256, list);
    this.sets.get(list.manifestSha256)?.update(list.peers);
    this.answered.get(list.manifestSha256)?.();
  }

  /** It is told also where there is nothing left to be had. False where nobody can be told. */
  tell(id: string): boolean {
    const { holdings, send } = this.options;
    const port = this.listener?.port;
    if (!this.connected || !this.listener || port === null || port === undefined) return false;
    const held = holdings.ids().includes(id) || this.sets.has(id);
    if (!held) this.named.delete(id);
    send(ModelHolding.fromPartial({ manifestSha256: id, port: held ? port : 0, networks: this.listener.networks(), whole: holdings.isWhole(id) }));
    return true;
  }

  get bytesSent(): number {
    return this.listener?.bytesSent ?? 0;
  }

  /** The certificate may be another. */
  renewed(): void {
    const identity = this.options.identity();
    if (identity === null || identity === 'cannot serve' || identity.cert === this.served?.cert) return;
    this.served = identity;
    this.listener?.renew(identity);
  }

  async stop(): Promise<void> {
    this.connected = false;
    await this.opening;
    for (const set of this.sets.values()) set.close();
    for (const resolve of this.answered.values()) resolve();
    await this.listener?.close();
    this.listener = null;
  }

  /** A device that cannot serve its peers fetches as well as one without any. */
  private async open(): Promise<void> {
    const { listen, plainHost, holdings, log } = this.options;
    const identity = this.options.identity();
    if (identity === 'cannot serve') return log.info('the certificate of this device is not for serving others; models come from the coordinator until it is renewed');
    if (identity === null && listen === null && plainHost === null) return log.info('without certificates models come from the coordinator alone; --peer-listen serves devices beside this one nevertheless');
    this.served = identity;
    const address = listen ?? { host: identity ? null : plainHost, port: 0 };
    const listener = new PeerListener({ listen: address, holdings, log, isNamed: (deviceId) => this.isNamed(deviceId) });
    try {
      await listener.open(identity);
      this.listener = listener;
    } catch (error) {
      log.warn({ listen: address, reason: (error as Error).message }, 'devices beside this one cannot be served; models come from the coordinator');
    }
  }

  private isNamed(deviceId: string): boolean {
    return [...this.named.values()].some(({ peers }) => peers.some((peer) => peer.deviceId === deviceId));
  }

  private connect(deviceId: string, address: string): BlobClient {
    const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
    const { served } = this;
    const check = (certificate: PeerCertificate) => (certificate.subject?.CN === deviceId ? undefined : new Error(`at ${address} is ${certificate.subject?.CN ?? 'nobody'}, ${deviceId} was expected`));
    return new BlobClient({ host: match?.[1] ?? match?.[2] ?? address, port: Number(match?.[3] ?? 0), tls: served && { ...served, servername: null, check } }, PEER_SILENCE_MS);
  }
}
