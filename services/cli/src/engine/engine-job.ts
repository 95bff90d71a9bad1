/** What crosses between the command line and the child process that holds the native engine. */
import type { EngineCounters, EngineMemory, EvalResult, FitResult, GenerateResult, ModelInfo, RoutingSpec } from '@moefleet/edge-agent/engine';
import { isModelFileJob, type ModelFileJob, modelFileOf, type ModelFileOutcomes } from './model-file-job';

/** How much of the model may be in memory: experts per layer, bytes over all layers, or everything. */
export type CacheSize = { t: 'all' } | { t: 'capacity'; capacity: number } | { t: 'bytes'; bytes: number };

/** The routing spec as the command line has it; a list is one value per MoE layer. */
export interface RoutingSettings extends Omit<Required<RoutingSpec>, 'lambda' | 'lambdas' | 'topJ' | 'topJs' | 'maxRank' | 'rank' | 'capacities' | 'generation'> {
  lambda: number | number[];
  /** null: 2, or all of a model that takes fewer */
  topJ: number | number[] | null;
  /** null: every expert of the model */
  maxRank: number | null;
  /** null: the worst of a token's experts */
  rank: number | null;
}

export interface EngineSettings {
  modelPath: string;
  routing: RoutingSettings;
  cache: CacheSize;
  /** 0: the model's own */
  contextTokens: number;
  /** 0: the engine's choice */
  threads: number;
  lanes: number;
  prefillBytes: number;
  directIo: boolean;
  /** experts arrive no faster; default 0: as fast as the disk is */
  readBytesPerSecond?: number;
  /** default false */
  verify?: boolean;
}

export type EngineJob =
  | { t: 'inspect'; settings: EngineSettings }
  /** `tokens` null: as many whole windows as the text gives */
  | { t: 'evaluate'; settings: EngineSettings; text: string; textPath: string; tokens: number | null; context: number; promptTokens: number; stepped: boolean; compare: boolean; recordRoutes: boolean; recordScores: boolean }
  /** one token at a time through the real cache, `passes` times over the same tokens, from an empty cache */
  | { t: 'decode'; settings: EngineSettings; text: string; textPath: string; tokens: number; context: number; passes: number }
  /** `heldOut`: the share of the windows that is scored instead */
  | { t: 'fitPrefetch'; settings: EngineSettings; text: string; textPath: string; tokens: number | null; context: number; heldOut: number; capacity: number | null }
  | { t: 'generate'; settings: EngineSettings; prompt: string; tokens: number; temperature: number; topP: number; seed: number }
  | ModelFileJob;

/** What the job is about, for messages. */
export function fileOf(job: EngineJob): string {
  if (isModelFileJob(job)) return modelFileOf(job);
  return job.settings.modelPath;
}

export interface InspectOutcome { info: ModelInfo; modelHash: string; engine: string; memory: EngineMemory; capacities: number[]; contextTokens: number; }
/** The result's `routes` and `scores` are there where they were asked for. */
export interface EvaluateOutcome { info: ModelInfo; modelHash: string; result: EvalResult; baseline: EvalResult | null; spec: RoutingSpec; counters: EngineCounters; peakRssBytes: number; }
export interface DecodeOutcome { result: EvalResult; spec: RoutingSpec; memory: EngineMemory; counters: EngineCounters; peakRssBytes: number; cpuSeconds: number; }
/** `capacity` is that of the held-out windows. */
export interface FitOutcome { result: FitResult; tokens: number; heldOutTokens: number; capacity: number; topK: number; }
export interface GenerateOutcome { text: string; result: GenerateResult; spec: RoutingSpec; memory: EngineMemory; counters: EngineCounters; peakRssBytes: number; }

export interface Outcomes extends ModelFileOutcomes { inspect: InspectOutcome; evaluate: EvaluateOutcome; decode: DecodeOutcome; fitPrefetch: FitOutcome; generate: GenerateOutcome; }

export type ToChild = { t: 'job'; job: EngineJob } | { t: 'cancel' };

export type FromChild =
  /** `bytes` where progress is counted in bytes */
  | { t: 'progress'; fraction: number; what: string; bytes?: { done: number; total: number } }
  /** the next piece of generated text, whole characters */
  | { t: 'text'; text: string }
  | { t: 'outcome'; outcome: Outcomes[keyof Outcomes] }
  /** `badInput`: the caller's model, text or flags; `code` is the engine's, null where it was not the engine */
  | { t: 'failure'; message: string; badInput: boolean; stack: string };
