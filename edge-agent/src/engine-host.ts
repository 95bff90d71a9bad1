/**
 * The supervisor's view of its engine host, the child process that holds the native engine. The supervisor never
 * loads the addon: an abort inside llama.cpp ends the child only.
 */
import type {
  EngineCounters, EngineMemory, EvalRequest, EvalResult, GenerateRequest, GenerateResult, ModelInfo, RoutingSpec, Step,
} from './native';

export type HostState =
  | { t: 'stopped' }
  | { t: 'loading'; modelPath: string }
  | { t: 'ready'; model: LoadedModel }
  /** no engine: `reason` says why; `retryAtMs` (epoch) when it will be started again, null where that would be no use */
  | { t: 'failed'; reason: string; retryAtMs: number | null };

export interface LoadedModel {
  /** SHA-256 identity, hex */
  hash: string;
  info: ModelInfo;
  contextTokens: number;
}

/** The host ended, or was not ready, while a request wanted it. `retryable`: the same request may work later. */
export class HostUnavailableError extends Error {
  override readonly name = 'HostUnavailableError';
  constructor(message: string, readonly retryable: boolean) {
    super(message);
  }
}

export interface EngineHost {
  readonly state: HostState;
  /** starts of the child process in this boot */
  readonly starts: number;
  /** ends of the child process that nobody asked for, in this boot */
  readonly crashes: number;
  onStateChange(listener: (state: HostState) => void): () => void;
  apply(spec: RoutingSpec): Promise<void>;
  /** Gives memory back at the next layer of a running request; holds until the next `apply`. */
  shrink(capacities: number[]): Promise<void>;
  dropCache(): Promise<void>;
  tokenize(text: string, addBos: boolean, parseSpecial: boolean): Promise<Int32Array>;
  applyChatTemplate(messages: { role: string; content: string }[]): Promise<string>;
  /** One at a time (the request queue sees to it). Aborting `signal` cancels at the next layer. */
  generate(request: GenerateRequest, onStep: (step: Step) => void, signal: AbortSignal): Promise<GenerateResult>;
  evaluate(request: EvalRequest, onProgress: (done: number, total: number) => void, signal: AbortSignal): Promise<EvalResult>;
  /** null while no engine is loaded */
  counters(): Promise<EngineCounters | null>;
  memory(): Promise<EngineMemory | null>;
}
