/**
 * One loaded model: a thin class over the addon that owns the handle, turns plain errors into typed ones and
 * AbortSignals into cancellations. It holds no policy.
 */
import {
  type EngineAddon, type EngineCounters, type EngineHandle, type EngineMemory, type EvalRequest, type ExpertUse, type FitRequest, type FitResult, type EvalResult, type GenerateRequest,
  type GenerateResult, loadAddon, type ModelInfo, type OpenOptions, type LruCurveLayer, type ReplayedLayer, type ReplayRequest, type RouteTrace, type RoutingSpec, type Step,
  type WarmResult,
} from '../native';
import { EngineCancelledError, toEngineError } from './engine-error';

/** The running evaluation answers to this id in `cancel`. */
export const EVALUATE_REQUEST_ID = 'evaluate';

type Progress = (done: number, total: number) => void;

/** Loading is cheap after the first time (Node caches the module), and throws where the addon has not been built. */
const addon = (): EngineAddon => loadAddon();

/** llama.cpp release and CPU backend, e.g. "v0.5.0 haswell". */
export const engineVersion = (): string => typed(() => addon().version());

/** Runs a record through the routing and the cache that the engine runs, each layer from empty. BadArgumentError, CapacityError. */
export const replay = (request: ReplayRequest, onProgress: Progress = () => {}): Promise<ReplayedLayer[][]> => typedAsync(() => addon().replay(request, onProgress));

/** LRU at the model's own choice, at every capacity in one pass. BadArgumentError. */
export const lruCurve = (request: RouteTrace & { uncountedTokens?: number }): Promise<LruCurveLayer[]> => typedAsync(() => addon().lruCurve(request));

export class Engine {
  private constructor(private readonly addon: EngineAddon, private readonly handle: EngineHandle) {}

  static open(options: OpenOptions): Promise<Engine> {
    return typedAsync(async () => {
      const loaded = addon();
      return new Engine(loaded, await loaded.open(options));
    });
  }

  info(): ModelInfo { return typed(() => this.addon.info(this.handle)); }
  memory(): EngineMemory { return typed(() => this.addon.memory(this.handle)); }
  spec(): Required<RoutingSpec> { return typed(() => this.addon.spec(this.handle)); }
  expertUse(): ExpertUse { return typed(() => this.addon.expertUse(this.handle)); }
  counters(): EngineCounters { return typed(() => this.addon.counters(this.handle)); }

  /** Resolves when the spec is in force: at the next token boundary of a running request, at once when idle. */
  apply(spec: RoutingSpec): Promise<void> { return typedAsync(() => this.addon.apply(this.handle, spec)); }
  /** Gives memory back at the next layer; holds until the next spec is applied. */
  shrink(capacities: number[]): Promise<void> { return typedAsync(() => this.addon.shrink(this.handle, capacities)); }
  /** Fills the room that the cache has left while no request runs; per MoE layer, best first. */
  warm(ranked: Int32Array[]): Promise<WarmResult> { return typedAsync(() => this.addon.warm(this.handle, ranked)); }
  dropCache(): Promise<void> { return typedAsync(() => this.addon.dropCache(this.handle)); }

  tokenize(text: string, addBos: boolean, parseSpecial: boolean): Int32Array {
    return typed(() => this.addon.tokenize(this.handle, text, addBos, parseSpecial));
  }
  detokenize(tokens: Int32Array): Uint8Array { return typed(() => this.addon.detokenize(this.handle, tokens)); }
  chatTemplate(): string | null { return typed(() => this.addon.chatTemplate(this.handle)); }
  applyChatTemplate(messages: { role: string; content: string }[]): string {
    return typed(() => this.addon.applyChatTemplate(this.handle, messages));
  }

  /** `onStep` comes in order, before the promise settles. An aborted generation resolves with `finishReason: 'cancelled'`. */
  generate(request: GenerateRequest, onStep: (step: Step) => void, signal?: AbortSignal): Promise<GenerateResult> {
    return this.cancellable(String(request?.requestId), signal, () => this.addon.generate(this.handle, request, onStep));
  }

  /** An aborted evaluation rejects with EngineCancelledError. */
  fitPrefetch(request: FitRequest, onProgress: Progress = () => {}, signal?: AbortSignal): Promise<FitResult> {
    return this.cancellable(EVALUATE_REQUEST_ID, signal, () => this.addon.fitPrefetch(this.handle, request, onProgress));
  }

  evaluate(request: EvalRequest, onProgress: Progress = () => {}, signal?: AbortSignal): Promise<EvalResult> {
    return this.cancellable(EVALUATE_REQUEST_ID, signal, () => this.addon.evaluate(this.handle, request, onProgress));
  }

  /** Ends the running request at the next layer; false if `requestId` is not running. */
  cancel(requestId: string): boolean { return typed(() => this.addon.cancel(this.handle, requestId)); }

  /** Ends the running request, waits for it and frees everything. Calling it twice is fine. */
  close(): Promise<void> { return typedAsync(() => this.addon.close(this.handle)); }

  private async cancellable<T>(requestId: string, signal: AbortSignal | undefined, start: () => Promise<T>): Promise<T> {
    if (signal?.aborted) throw new EngineCancelledError(`request ${requestId} was cancelled before it began`);
    const running = typedAsync(start);
    const cancel = () => { this.addon.cancel(this.handle, requestId); };
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      return await running;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }
}

function typed<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toEngineError(error);
  }
}

async function typedAsync<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw toEngineError(error);
  }
}
