/**
 * The coordinator's connection to Redis: one client for commands, one for subscriptions. Says whether Redis is there,
 * logs each change of that once, and turns whatever a command fails with into an error of ours. Whoever keeps state
 * that must be written or read again after an outage listens with `onUp`.
 */
import { Cluster, ReplyError } from 'ioredis';
import type { Logger, Service } from '@moefleet/runtime';
import { reasonOf, RegistryDataError, RegistryUnavailableError } from '../errors';
import { keepNodesCurrent, onNewMaster } from './cluster-nodes';
import { createRedisClient, type RedisAddress, type RedisClient, shownUrl } from '@moefleet/runtime/redis';
import { keysOf, type ScriptArgument, ScriptBatch } from './script-batch';
import { type Script, SCRIPTS } from './scripts';

type LinkState =
  | { t: 'down' }
  | { t: 'up' }
  | { t: 'away'; sinceMs: number }
  | { t: 'closed' };

/** How long `start` waits for Redis before the program gives up. */
const START_DEADLINE_MS = 10_000;

/** Answers of a Redis that is there but cannot serve now. */
const NOT_NOW = /^(?:LOADING|READONLY|CLUSTERDOWN|MASTERDOWN|OOM|BUSY|MISCONF|TRYAGAIN|NOAUTH|WRONGPASS|NOPERM|NOREPLICAS)\b/;

export class RedisLink implements Service {
  readonly name = 'redis';
  readonly url: string;
  private readonly commands: RedisClient;
  private readonly subscriber: RedisClient;
  private state: LinkState = { t: 'down' };
  private lastError: unknown = new Error('no connection yet');
  private toldWaiting = false;
  private readonly upListeners = new Set<() => void>();
  private readonly downListeners = new Set<() => void>();
  private stopKeeping: (() => void)[] = [];
  private readonly channels = new Map<string, (message: string) => void>();
  private readonly batches = new Map<Script, ScriptBatch>();

  constructor(address: RedisAddress, private readonly log: Logger, private readonly startDeadlineMs = START_DEADLINE_MS, private readonly onAnswer: (ms: number) => void = () => {}) {
    this.url = shownUrl(address.url);
    this.commands = createRedisClient(address, 'moefleet-coordinator');
    this.subscriber = createRedisClient(address, 'moefleet-coordinator-subscriber');
    for (const script of SCRIPTS) {
      this.commands.defineCommand(script.name, { lua: script.lua, ...(script.keys === 'any' ? {} : { numberOfKeys: script.keys }) });
      if (!script.batched || this.commands instanceof Cluster) continue;
      this.batches.set(script, new ScriptBatch(script, this.commands, onAnswer, (key, error) => this.failure(key, error)));
    }
    this.watch(this.commands, () => this.commandsReady());
    this.watch(this.subscriber, () => void this.subscribeAll());
    if (this.commands instanceof Cluster) onNewMaster(this.commands, () => this.masterReplaced());
    this.subscriber.on('message', (channel: string, message: string) => this.channels.get(channel)?.(message));
  }

  get up(): boolean {
    return this.state.t === 'up';
  }

  /** Tries for up to ten seconds, then throws RegistryUnavailableError. */
  async start(): Promise<void> {
    const firstUp = new Promise<void>((resolve) => {
      const off = this.onUp(() => { off(); resolve(); });
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new RegistryUnavailableError(this.url, this.lastError)), this.startDeadlineMs);
    });
    for (const client of [this.commands, this.subscriber]) {
      this.connect(client);
      if (client instanceof Cluster) this.stopKeeping.push(keepNodesCurrent(client));
    }
    try {
      await Promise.race([firstUp, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async stop(): Promise<void> {
    if (this.state.t === 'closed') return;
    this.transition({ t: 'closed' });
    this.upListeners.clear();
    this.downListeners.clear();
    for (const stop of this.stopKeeping) stop();
    this.commands.disconnect();
    this.subscriber.disconnect();
  }

  /** Called whenever Redis has become reachable, the first time included, when subscriptions are back, and when a replica has become master. */
  onUp(listener: () => void): () => void {
    this.upListeners.add(listener);
    return () => this.upListeners.delete(listener);
  }

  onDown(listener: () => void): () => void {
    this.downListeners.add(listener);
    return () => this.downListeners.delete(listener);
  }

  /** Runs `operation`; `key` names what it is about. Throws RegistryUnavailableError or RegistryDataError only. */
  async run<T>(key: string, operation: (client: RedisClient) => Promise<T>): Promise<T> {
    if (this.state.t !== 'up') throw new RegistryUnavailableError(this.url, this.lastError);
    const beganMs = performance.now();
    try {
      return await operation(this.commands);
    } catch (error) {
      throw this.failure(key, error);
    } finally {
      this.onAnswer(performance.now() - beganMs);
    }
  }

  /** The script's answer, bytes as Buffer. `of`: the keys, or what those of the device begin with, where the script is of one device. */
  script(script: Script, of: readonly string[] | string, args: readonly ScriptArgument[]): Promise<unknown> {
    const batch = this.batches.get(script);
    if (batch) return this.state.t === 'up' ? batch.call(of, args) : Promise.reject(new RegistryUnavailableError(this.url, this.lastError));
    const keys = keysOf(script, of);
    return this.run(keys[0]!, (client) => {
      const call = (client as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>)[`${script.name}Buffer`]!;
      return call.apply(client, [...(script.keys === 'any' ? [keys.length] : []), ...keys, ...args.map((arg) => (typeof arg === 'bigint' ? String(arg) : arg))]);
    });
  }

  /** From now on, and again after every reconnect. Messages that pass during an outage are lost. */
  subscribe(channel: string, listener: (message: string) => void): void {
    this.channels.set(channel, listener);
    if (this.subscriber.status === 'ready') void this.subscribeAll();
  }

  /** What a command that failed with `error` tells its caller; `key` names what it was about. */
  private failure(key: string, error: unknown): Error {
    if (error instanceof RegistryDataError || error instanceof RegistryUnavailableError) return error;
    if (isReplyError(error) && !NOT_NOW.test(error.message)) return new RegistryDataError(key, error.message, error);
    return new RegistryUnavailableError(this.url, error);
  }

  private connect(client: RedisClient): void {
    // Failing here is no news: the client goes on trying, and 'error' has told why.
    client.connect().catch(() => {});
  }

  private watch(client: RedisClient, ready: () => void): void {
    client.on('error', (error: unknown) => this.noteError(error));
    client.on('ready', ready);
    client.on('close', () => {
      if (client === this.commands && this.state.t === 'up') this.transition({ t: 'away', sinceMs: Date.now() });
    });
  }

  private noteError(error: unknown): void {
    this.lastError = error;
    if (this.state.t !== 'down' || this.toldWaiting) return;
    this.toldWaiting = true;
    this.log.warn({ url: this.url, reason: reasonOf(error), forMs: this.startDeadlineMs }, 'redis does not answer yet; trying again');
  }

  private commandsReady(): void {
    if (this.state.t === 'closed') return;
    this.lastError = new Error('it has closed the connection');
    this.transition({ t: 'up' });
    this.announce(this.upListeners);
  }

  private masterReplaced(): void {
    if (this.state.t !== 'up') return;
    this.log.warn({ url: this.url }, 'redis cluster: a replica has become master; saying again what it may lack');
    this.announce(this.upListeners);
  }

  private async subscribeAll(): Promise<void> {
    try {
      for (const channel of this.channels.keys()) await this.subscriber.subscribe(channel);
      if (this.state.t === 'up') this.announce(this.upListeners);
    } catch (error) {
      if (this.state.t !== 'closed') this.log.warn({ reason: reasonOf(error) }, 'redis subscription failed');
    }
  }

  private announce(listeners: ReadonlySet<() => void>): void {
    for (const listener of [...listeners]) listener();
  }

  private transition(to: LinkState): void {
    const from = this.state;
    this.state = to;
    if (to.t === 'up' && from.t === 'away') this.log.info({ url: this.url, awayMs: Date.now() - from.sinceMs }, 'redis is back');
    if (to.t === 'up' && from.t === 'down') this.log.info({ url: this.url }, 'redis connected');
    if (to.t === 'away') {
      this.log.warn({ url: this.url, reason: reasonOf(this.lastError) }, 'redis is away; agents stay connected, changes have to wait');
      this.announce(this.downListeners);
    }
  }
}

function isReplyError(error: unknown): error is Error {
  return error instanceof Error && (error instanceof ReplyError || error.name === 'ReplyError');
}
