/**
 * The supervisor's engine host, over any number of lives of the child process. It owns which model is loaded: a crash
 * is followed by a restart after a jittered wait, and a model that fails to load, or crashes the host twice before it
 * has decoded a token, gives way to the last one that has. Which spec a model is opened with is asked of `specFor` at
 * every load, so that a restarted engine never runs a token under anything but the spec in force.
 */
import { backoffMs, type Logger, type Service } from '@moefleet/runtime';
import { ShortMemoryError } from '../control/start-memory';
import { type EngineHost, type HostState, HostUnavailableError, type LoadedModel } from '../engine-host';
import type {
  EngineCounters, EngineMemory, EvalRequest, EvalResult, ExpertUse, GenerateRequest, GenerateResult, OpenOptions, RoutingSpec, Step, WarmResult,
} from '../native';
import { describeEnd, type ProcessEnd } from './crash-report';
import type { CallName, HostCalls } from './host-protocol';
import { type CallOptions, HostProcess } from './host-process';
import { LastGood } from './last-good';

const RESTART = { baseMs: 250, maxMs: 30_000 };
/** A host that was up this long has shown that its crash is no crash loop. */
const SETTLED_MS = 60_000;

export interface HostClientOptions {
  /** path of the compiled host-main */
  hostPath: string;
  env: NodeJS.ProcessEnv;
  log: Logger;
  modelPath: string;
  /** a model that has served before, to go back to; null for none */
  lastGoodModelPath: string | null;
  /** `contextTokens` is an upper bound; 0: the model's own */
  open: Omit<OpenOptions, 'modelPath' | 'spec'>;
  /** may throw where the model does not fit this device; the message becomes the reason */
  specFor: (model: LoadedModel) => RoutingSpec;
  memory?: MemoryGuard;
  /** the model has decoded its first token */
  onModelProven: (modelPath: string) => void;
  random?: () => number;
}

/** Asked before each step that takes memory. Each may throw ShortMemoryError: the start is tried again later. */
export interface MemoryGuard {
  beforeStart(): void;
  /** what prompts may take beside the cache, null: no bound; and `specFor` is asked thereafter */
  beforeOpen(model: LoadedModel): number | null;
  /** nothing of the cache has been filled yet */
  opened(model: LoadedModel, memory: EngineMemory): void;
}

/** `failure`: the model has been given up; its caller is told when the one before serves again, or cannot. */
interface PendingLoad { modelPath: string; failure: Error | null; resolve: () => void; reject: (error: Error) => void; }

export interface CrashEvent {
  reason: string;
  /** the model itself is on trial and may be what brought the engine down */
  modelOnTrial: boolean;
}

export class EngineHostClient implements EngineHost, Service {
  readonly name = 'engine host';
  private current: HostState = { t: 'stopped' };
  private process: HostProcess | null = null;
  private readonly model: LastGood<string>;
  private readonly stateListeners = new Set<(state: HostState) => void>();
  private readonly crashListeners = new Set<(event: CrashEvent) => void>();
  private readonly troubleListeners = new Set<() => void>();
  private readonly servedListeners = new Set<() => void>();
  private pendingLoad: PendingLoad | null = null;
  private ending: Promise<void> = Promise.resolve();
  private restartTimer: NodeJS.Timeout | null = null;
  private attempt = 0;
  private readySinceMs = 0;
  private startCount = 0;
  private crashCount = 0;
  private stopped = false;
  private note = '';

  constructor(private readonly options: HostClientOptions) {
    this.model = new LastGood(options.modelPath, options.lastGoodModelPath === options.modelPath ? null : options.lastGoodModelPath);
  }

  get state(): HostState { return this.current; }
  get starts(): number { return this.startCount; }
  get crashes(): number { return this.crashCount; }
  /** process id of the child, null while there is none */
  get pid(): number | null { return this.process?.pid ?? null; }
  /** loaded, being loaded, or what could not be loaded */
  get modelPath(): string { return this.model.current; }
  /** what happened last to the engine host, or to a read of its model; empty while nothing has */
  get lastTrouble(): string { return this.note; }

  onStateChange(listener: (state: HostState) => void): () => void { return subscribe(this.stateListeners, listener); }
  /** Called before the restart is planned, so that a listener may change what `specFor` will say. */
  onCrash(listener: (event: CrashEvent) => void): () => void { return subscribe(this.crashListeners, listener); }
  /** `lastTrouble` has news, and the engine serves on. */
  onTrouble(listener: () => void): () => void { return subscribe(this.troubleListeners, listener); }
  /** A token was decoded. */
  onServed(listener: () => void): () => void { return subscribe(this.servedListeners, listener); }

  /** Returns at once; `state` tells when the model is ready. */
  async start(): Promise<void> {
    void this.launch();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.clearRestart();
    const ended = this.endProcess();
    this.transition({ t: 'stopped' });
    this.settleLoad(new HostUnavailableError('the agent is stopping', false));
    await ended;
  }

  /**
   * Puts another model in place of the loaded one. Checks it first, so that a file that is no model disturbs nothing.
   * Rejects with the reason where it cannot be served, when the last good model serves on, or again. Call it with the
   * engine to yourself.
   */
  async load(modelPath: string): Promise<void> {
    if (this.pendingLoad) throw new Error(`another model is being loaded: ${this.pendingLoad.modelPath}; wait for it`);
    if (this.current.t === 'ready') {
      const { hash, info } = await this.call('identify', { modelPath });
      this.options.specFor({ hash, info, contextTokens: this.contextTokens(info.contextTrain) });
    }
    if (this.stopped) throw new HostUnavailableError('the agent is stopping', false);
    if (this.pendingLoad) throw new Error('another model is being loaded; wait for it');
    const done = new Promise<void>((resolve, reject) => {
      this.pendingLoad = { modelPath, failure: null, resolve, reject };
    });
    // What is loaded has not failed yet: should the newcomer, this is what to go back to, served or not.
    if (this.current.t === 'ready') this.proveModel();
    this.model.try(modelPath);
    this.clearRestart();
    this.attempt = 0;
    await this.endProcess();
    // Whoever stopped it meanwhile has rejected the load, and nothing may run again.
    if (!this.stopped) void this.launch();
    return done;
  }

  /**
   * What was loaded last is of no use: where another has served before, that one does again. Rejects with `reason` when it does, or
   * at once where there is none.
   */
  async refuse(modelPath: string, reason: Error): Promise<never> {
    const back = this.model.current === modelPath && !this.pendingLoad ? this.model.goBack() : null;
    if (back === null) throw reason;
    const done = new Promise<never>((_, reject) => {
      this.pendingLoad = { modelPath, failure: reason, resolve: () => reject(reason), reject };
    });
    await this.endProcess();
    if (!this.stopped) this.goBack(back, reason);
    return done;
  }

  apply(spec: RoutingSpec): Promise<void> {
    return this.ready('apply', { spec }).then(() => {});
  }
  shrink(capacities: number[]): Promise<void> {
    return this.ready('shrink', { capacities }).then(() => {});
  }
  /** Resolves when the cache has been filled, or another list has come. */
  warm(ranked: Int32Array[]): Promise<WarmResult> {
    return this.ready('warm', { ranked });
  }
  dropCache(): Promise<void> {
    return this.ready('dropCache', {}).then(() => {});
  }
  tokenize(text: string, addBos: boolean, parseSpecial: boolean): Promise<Int32Array> {
    return this.ready('tokenize', { text, addBos, parseSpecial });
  }
  applyChatTemplate(messages: { role: string; content: string }[]): Promise<string> {
    return this.ready('applyChatTemplate', { messages });
  }
  generate(request: GenerateRequest, onStep: (step: Step) => void, signal: AbortSignal): Promise<GenerateResult> {
    return this.reading('generate', { request }, {
      signal,
      onStep: (step) => {
        if (step.step > 0) this.served();
        onStep(step);
      },
    });
  }
  evaluate(request: EvalRequest, onProgress: (done: number, total: number) => void, signal: AbortSignal): Promise<EvalResult> {
    return this.reading('evaluate', { request }, { signal, onProgress });
  }
  counters(): Promise<EngineCounters | null> {
    return this.ready('counters', {}).catch(nullIfUnavailable);
  }
  expertUse(): Promise<ExpertUse | null> {
    return this.ready('expertUse', {}).catch(nullIfUnavailable);
  }
  memory(): Promise<EngineMemory | null> {
    return this.ready('memory', {}).catch(nullIfUnavailable);
  }

  /** A call that reads the model's file: the agent tells of what went wrong with it, beside the caller who is told at once. */
  private async reading<C extends CallName>(name: C, args: HostCalls[C]['args'], options?: CallOptions): Promise<HostCalls[C]['result']> {
    const { process } = this;
    try {
      return await this.ready(name, args, options);
    } catch (error) {
      if (process !== null && this.process === process) this.readFailed(error as Error & { code?: unknown });
      throw error;
    }
  }

  /** A disk that fails may come back, and other experts may do; a file that has changed is not the model that was loaded. */
  private readFailed({ code, message }: Error & { code?: unknown }): void {
    if (code !== 'IO' && code !== 'MODEL_CHANGED') return;
    this.note = message;
    if (code === 'MODEL_CHANGED') {
      this.transition({ t: 'failed', reason: message, retryAtMs: null });
      void this.endProcess();
    } else {
      this.options.log.error({ reason: message }, 'the model could not be read');
      for (const listener of this.troubleListeners) listener();
    }
  }

  private ready<C extends CallName>(name: C, args: HostCalls[C]['args'], options?: CallOptions): Promise<HostCalls[C]['result']> {
    return this.current.t === 'ready' ? this.call(name, args, options) : Promise.reject(unavailable(this.current));
  }

  private call<C extends CallName>(name: C, args: HostCalls[C]['args'], options?: CallOptions): Promise<HostCalls[C]['result']> {
    return this.process ? this.process.call(name, args, options) : Promise.reject(unavailable(this.current));
  }

  private contextTokens(contextTrain: number): number {
    const asked = this.options.open.contextTokens;
    return asked === 0 ? contextTrain : Math.min(asked, contextTrain);
  }

  private async launch(): Promise<void> {
    const modelPath = this.model.current;
    const { memory } = this.options;
    try {
      memory?.beforeStart();
    } catch (error) {
      return this.loadFailed(modelPath, error as Error);
    }
    this.startCount += 1;
    const process: HostProcess = new HostProcess({
      hostPath: this.options.hostPath,
      env: this.options.env,
      onStderr: (text) => this.options.log.debug({ text: text.trimEnd() }, 'engine host says'),
      onEnd: (end, wanted) => this.onEnd(process, end, wanted),
    });
    this.process = process;
    this.transition({ t: 'loading', modelPath });
    try {
      const { hash, info } = await process.call('identify', { modelPath });
      const model = { hash, info, contextTokens: this.contextTokens(info.contextTrain) };
      const { open } = this.options;
      const promptBytes = memory?.beforeOpen(model) ?? 0;
      await process.call('open', { options: { ...open, contextTokens: model.contextTokens, promptBytes, modelPath, spec: this.options.specFor(model) } });
      memory?.opened(model, await process.call('memory', {}));
      if (this.process === process) this.opened(model);
    } catch (error) {
      // A host that ended has been dealt with in onEnd.
      if (this.process === process && !(error instanceof HostUnavailableError)) await this.loadFailed(modelPath, error as Error);
    }
  }

  private opened(model: LoadedModel): void {
    this.readySinceMs = Date.now();
    this.transition({ t: 'ready', model });
    this.settleLoad(this.pendingLoad?.failure ?? null);
  }

  /** The model was refused in good order: going on with it is no use, save where the disk may come back. */
  private async loadFailed(modelPath: string, error: Error): Promise<void> {
    const { pendingLoad } = this;
    this.note = error.message;
    this.options.log.error({ modelPath, reason: error.message }, 'model cannot be loaded');
    await this.endProcess();
    // Another model asked for meanwhile has its own launch; this failure is not its.
    if (this.stopped || this.pendingLoad !== pendingLoad) return;
    if (this.goBack(this.model.goBack(), error)) return;
    this.settleLoad(this.pendingLoad?.failure ?? error);
    const mayPass = (error as { code?: string }).code === 'IO' || error instanceof ShortMemoryError;
    if (mayPass) this.restartLater(error.message);
    else this.transition({ t: 'failed', reason: error.message, retryAtMs: null });
  }

  private onEnd(process: HostProcess, end: ProcessEnd, wanted: boolean): void {
    if (this.process !== process || wanted) return;
    this.process = null;
    this.crashCount += 1;
    const reason = describeEnd(end);
    this.note = reason;
    this.options.log.warn({ signal: end.signal, exitCode: end.exitCode, crashes: this.crashCount, lastLines: end.lastLines }, 'engine host crashed');
    if (this.current.t === 'ready' && Date.now() - this.readySinceMs > SETTLED_MS) this.attempt = 0;
    const modelOnTrial = !this.model.proven && this.model.lastGood !== null;
    for (const listener of this.crashListeners) listener({ reason, modelOnTrial });
    if (this.goBack(this.model.crashed(), new Error(reason))) return;
    // No second chance: what was gone back to crashes too, or there is nothing to go back to.
    if (this.pendingLoad?.failure || this.model.lastGood === null) this.settleLoad(this.pendingLoad?.failure ?? new Error(reason));
    this.restartLater(reason);
  }

  private goBack(modelPath: string | null, error: Error): boolean {
    if (modelPath === null) return false;
    this.note = `${error.message}; went back to ${modelPath}`;
    this.options.log.warn({ modelPath, reason: error.message }, 'going back to the last good model');
    if (this.pendingLoad) this.pendingLoad.failure = error;
    this.attempt = 0;
    void this.launch();
    return true;
  }

  private restartLater(reason: string): void {
    const waitMs = backoffMs(this.attempt, { ...RESTART, random: this.options.random ?? Math.random });
    this.attempt += 1;
    this.transition({ t: 'failed', reason, retryAtMs: Date.now() + waitMs });
    this.restartTimer = setTimeout(() => {
      this.restartTimer = null;
      void this.launch();
    }, waitMs);
  }

  private served(): void {
    this.attempt = 0;
    this.proveModel();
    for (const listener of this.servedListeners) listener();
  }

  private proveModel(): void {
    if (this.model.prove()) this.options.onModelProven(this.model.current);
  }

  /** Returns when it is gone, whoever ended it. */
  private endProcess(): Promise<void> {
    const { process } = this;
    this.process = null;
    if (process) this.ending = process.stop();
    return this.ending;
  }

  private settleLoad(error: Error | null): void {
    const pending = this.pendingLoad;
    this.pendingLoad = null;
    if (error) pending?.reject(error);
    else pending?.resolve();
  }

  private clearRestart(): void {
    if (this.restartTimer) clearTimeout(this.restartTimer);
    this.restartTimer = null;
  }

  private transition(to: HostState): void {
    const from = this.current;
    this.current = to;
    this.options.log.info({ from: from.t, to: to.t, ...(to.t === 'loading' ? { modelPath: to.modelPath } : {}), ...(to.t === 'failed' ? { reason: to.reason } : {}) }, 'engine host state');
    for (const listener of this.stateListeners) listener(to);
  }
}

function subscribe<T>(listeners: Set<T>, listener: T): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function unavailable(state: HostState): HostUnavailableError {
  if (state.t === 'failed') return new HostUnavailableError(state.reason, state.retryAtMs !== null);
  if (state.t === 'loading') return new HostUnavailableError(`the model is being loaded: ${state.modelPath}`, true);
  return new HostUnavailableError('the engine host is stopped', false);
}

function nullIfUnavailable(error: unknown): null {
  if (error instanceof HostUnavailableError) return null;
  throw error;
}
