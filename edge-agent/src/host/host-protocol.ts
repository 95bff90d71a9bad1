/**
 * What the supervisor and its engine host say to each other over the child's IPC channel (structured clone, so that
 * typed arrays cross as they are). One request, any number of `step` or `progress` messages in order, then exactly one
 * `done` or `failed` with the request's id. `cancel` and `close` have no answer of their own: the cancelled request
 * answers, and closing ends the process.
 */
import type {
  CheckResult, EngineCounters, EngineMemory, EvalRequest, EvalResult, ExpertUse, GenerateRequest, GenerateResult, ModelInfo, OpenOptions, RoutingSpec, Step, WarmResult,
} from '../native';

/** Every call with its arguments and its answer. */
export interface HostCalls {
  /** reads the model's header and takes its identity; loads nothing */
  identify: { args: { modelPath: string }; result: { hash: string; info: ModelInfo } };
  /** reads all of a packed model and compares it with its checksums; loads nothing */
  check: { args: { modelPath: string }; result: CheckResult };
  open: { args: { options: OpenOptions }; result: null };
  apply: { args: { spec: RoutingSpec }; result: null };
  shrink: { args: { capacities: number[] }; result: null };
  warm: { args: { ranked: Int32Array[] }; result: WarmResult };
  dropCache: { args: Record<never, never>; result: null };
  tokenize: { args: { text: string; addBos: boolean; parseSpecial: boolean }; result: Int32Array };
  applyChatTemplate: { args: { messages: { role: string; content: string }[] }; result: string };
  generate: { args: { request: GenerateRequest }; result: GenerateResult };
  evaluate: { args: { request: EvalRequest }; result: EvalResult };
  expertUse: { args: Record<never, never>; result: ExpertUse };
  counters: { args: Record<never, never>; result: EngineCounters };
  memory: { args: Record<never, never>; result: EngineMemory };
}

export type CallName = keyof HostCalls;

export type HostRequest =
  | { [C in CallName]: { t: C; id: number } & HostCalls[C]['args'] }[CallName]
  /** ends the running request `id` at the next layer; a request that has ended is not an error */
  | { t: 'cancel'; id: number }
  | { t: 'close' };

/** An error as it crosses: `code` is the engine's where it has one, else empty. */
export interface RemoteError { name: string; code: string; message: string; }

export type HostReply =
  | { t: 'done'; id: number; value: unknown }
  | { t: 'failed'; id: number; error: RemoteError }
  | { t: 'step'; id: number; step: Step }
  | { t: 'progress'; id: number; done: number; total: number };

export function toRemoteError(error: unknown): RemoteError {
  if (!(error instanceof Error)) return { name: 'Error', code: '', message: String(error) };
  const code = (error as { code?: unknown }).code;
  return { name: error.name, code: typeof code === 'string' ? code : '', message: error.message };
}

/** An engine's error on the supervisor's side; `code` is an `EngineErrorCode`, or empty for any other failure. */
export class RemoteEngineError extends Error {
  override readonly name: string;
  readonly code: string;
  constructor(error: RemoteError) {
    super(error.message);
    this.name = error.name;
    this.code = error.code;
  }
}
