/**
 * The one place where TypeScript meets the native engine. `native/addon/engine-addon.cpp` exports the same
 * functions in the same order. Plain values cross; every field is present; `null` means none. Long work is a
 * promise on the engine's own thread. Errors reject with an `Error` whose `code` is one of `EngineErrorCode`
 * and whose message names the thing, the value and the next step.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/**
 * How a token's experts are chosen; the definitions are in native/engine/routing.h. `original`: the model's own choice.
 * `cache_prior`: bent towards resident experts by lambda. `max_rank`: residents of rank up to `maxRank` first.
 * `cumulative_threshold`: the same with the rank at which the softmax mass reaches `massThreshold`. `pruned`: the model's
 * own, without those beyond topJ that miss. `sensitivity`: the expert of one rank replaced by a random one.
 */
export type Routing = 'original' | 'cache_prior' | 'max_rank' | 'cumulative_threshold' | 'pruned' | 'sensitivity';

/**
 * Who leaves a full cache: the least recently used, the least used, the one with the fewest uses per token since its last, or
 * the one that each layer has learned to expect back last (native/engine/reuse-predictor.h).
 */
export type Eviction = 'lru' | 'lfu' | 'lfru' | 'adaptive';

export type Prefetch = 'auto' | 'off' | 'on';

/** What may change while the engine runs; applied as one snapshot at a token boundary. */
export interface RoutingSpec {
  routing: Routing;
  /** strength of the pull towards resident experts, in [0,1] */
  lambda: number;
  /** how many of a token's best experts are never displaced, in [0, topK] */
  topJ: number;
  /** experts that may be resident, one entry per MoE layer in layer order; each in [topK, experts] */
  capacities: number[];
  /** generation of the desired spec this came from; stamped on every miss event; 0 where there is none */
  generation: number;
  /** one per MoE layer, in place of `lambda`; default null: `lambda` for all */
  lambdas?: number[] | null;
  /** likewise, in place of `topJ` */
  topJs?: number[] | null;
  /** read by `max_rank` alone, which needs it: a resident expert is preferred up to this rank, in [topK, experts] */
  maxRank?: number;
  /** read by `cumulative_threshold` alone: softmax mass in [0,1]; default 0, the model's own choice */
  massThreshold?: number;
  /** read by `sensitivity` alone, which needs it: which rank is replaced, in [1, topK] */
  rank?: number;
  /** read by `sensitivity` alone: the same seed draws the same experts; default 0 */
  seed?: number;
  /** that many MoE layers, from the first, keep the model's own choice; default 0 */
  firstBiasedLayer?: number;
  /** route prompts as decoding is, instead of by the model's own choice; default false */
  biasPrefill?: boolean;
  /** default adaptive */
  eviction?: Eviction;
  /** tokens in which a use loses half of its weight in lfu and lfru; default 0: uses do not age */
  evictionHalfLifeTokens?: number;
  /** speculative pre-fetch, into memory beyond the capacities; default off; auto: measured while it runs, and off where it does not pay */
  prefetch?: Prefetch;
}

/** `type` is ggml's name, such as "q8_0"; `shape` begins with the length of a row. */
export interface TensorPlace { name: string; file: number; offset: number; bytes: number; type: string; shape: number[]; }

export interface ModelInfo {
  path: string;
  /** all of the model's files; the first is `path` */
  files: string[];
  /** of all files */
  fileBytes: number;
  architecture: string;
  name: string;
  /** transformer blocks in all */
  layers: number;
  /** block index of each MoE layer, ascending; every per-layer array below follows this order */
  moeLayers: number[];
  experts: number;
  topK: number;
  /** bytes of one expert (all of its matrices) per MoE layer */
  expertBytes: number[];
  /** bytes of everything that is not an expert */
  denseBytes: number;
  /** sum over MoE layers of topK x expertBytes: what one token touches */
  tokenCycleBytes: number;
  /** alignment of tensor data in the file (general.alignment) */
  alignment: number;
  /** layout of the file's checksums; 0: it has none */
  packVersion: number;
  contextTrain: number;
  vocab: number;
  /** what the hook ranks by: the router's logits, the logits after a gate bias, or the final selection score */
  selectBy: 'logits' | 'logits_biased' | 'selection_score';
  /** whether the model normalises the weights of the selected experts itself */
  normalisesWeights: boolean;
  /** where each tensor's data lies: an index into `files` and the offset in that file; for hashing and packing */
  tensors: TensorPlace[];
}

/** `keptBytes`: of the file, written by an interrupted call before, compared and kept. */
export interface WriteResult { bytes: number; keptBytes: number; }

/**
 * Exactly one of the first three is above 0: the width itself, or the least width that reaches a size, of each expert or
 * of all together, and puts each expert's matrices on whole pages (where there is such a width).
 */
export interface WidenOptions { width: number; expertBytes: number; totalBytes: number; replace: boolean; }

/** Types by ggml's names; `downType` empty: as `type`. `requantize` allows experts that are quantised already. */
export interface QuantizeOptions { type: string; downType: string; requantize: boolean; threads: number; replace: boolean; }

/** `damaged` names experts and tensors, the first 1,000 of `damagedCount`. */
export interface CheckResult { checkedBytes: number; damagedCount: number; damaged: string[]; }

export interface OpenOptions {
  modelPath: string;
  /** context length in tokens; 0: the model's own training context */
  contextTokens: number;
  /** compute threads; 0: physical cores minus one, at least one */
  threads: number;
  /** parallel flash reads (lanes); 0: 4 */
  lanes: number;
  /** read with O_DIRECT (falls back to buffered, said in `EngineMemory.directIo`, where the file system refuses) */
  directIo: boolean;
  /** upper bound on expert bytes held beyond the cache while a prompt is prefilled; 0: one layer's worth */
  prefillBytes: number;
  /**
   * about the most that reading a prompt takes beside the cache, by smaller micro-batches and, where `prefillBytes` is 0, fewer experts
   * that pass through at a time; default 0: unbounded
   */
  promptBytes?: number;
  /** keep every expert in memory once read, whatever the capacities; for evaluation on a workstation */
  keepAll: boolean;
  /**
   * have experts arrive no faster than from a disk of this speed, which serves one read after another and never makes up
   * for idle time; for benches; default 0: as fast as the disk is
   */
  readBytesPerSecond?: number;
  /** check the header and every tensor and expert that is read against the file's checksums (a packed file); default false */
  verify?: boolean;
  spec: RoutingSpec;
}

/** Bytes; the sum bounds the peak resident set, save about 150 MiB for Node and the libraries. */
export interface EngineMemory {
  denseBytes: number; kvBytes: number; computeBytes: number; cacheBytes: number; prefillBytes: number;
  /** experts read ahead that are not selected yet; 0 where pre-fetch is off */
  stagingBytes: number;
  /** expert bytes resident now */
  residentBytes: number;
  /** of `computeBytes`, what is taken only when a longer prompt than any so far is read */
  untouchedBytes: number;
  directIo: boolean;
}

export interface GenerateRequest {
  requestId: string;
  prompt: Int32Array;
  maxTokens: number;
  /** 0 takes the likeliest token */
  temperature: number;
  topP: number;
  seed: number;
  /** drop the expert cache first, so that this request starts cold */
  coldCache: boolean;
  /** capture the router's logits of this request's decoded tokens */
  captureRouter: boolean;
}

/** One miss event is MISS_EVENT_FIELDS numbers, in this order. Times are nanoseconds of CLOCK_MONOTONIC. */
export const MISS_EVENT_FIELDS = 14;
export const MISS_EVENT = {
  /** 1, 2, 3, ... since the engine was opened */
  missNumber: 0,
  /** 0 for prefill, 1, 2, ... for the decode steps: the step in which the miss happened */
  step: 1,
  /** block index of the layer */
  layer: 2,
  expert: 3,
  bytes: 4,
  /** when the read was asked for */
  startNs: 5,
  /** when the last of its bytes was in place */
  endNs: 6,
  /** time in the lane queue before the first byte was asked of the disk */
  queueWaitNs: 7,
  /** time the compute thread stood still for this read */
  stallNs: 8,
  /** expert evicted to make room, -1 for none */
  evictedExpert: 9,
  /** PREFETCH index: 0 none, 1 late, 2 ready */
  prefetch: 10,
  lambda: 11,
  generation: 12,
  /** number of positioned reads it took */
  reads: 13,
} as const;
export const PREFETCH = ['none', 'late', 'ready'] as const;

/** One step: step 0 is the prefill (its token is the first one sampled), step n the n-th decode. */
export interface Step {
  step: number;
  /** the token sampled after this step, or -1 when generation ended with it, or more of step 0 follows (a long prefill) */
  token: number;
  /** bytes of the token's text; may end inside a UTF-8 sequence */
  text: Uint8Array;
  startNs: number;
  endNs: number;
  hits: number;
  misses: number;
  /** misses x MISS_EVENT_FIELDS numbers */
  missEvents: Float64Array;
  /** moeLayers x experts logits when captured (decode steps only), else null */
  routerLogits: Float32Array | null;
}

export interface GenerateResult {
  promptTokens: number;
  completionTokens: number;
  finishReason: 'stop' | 'length' | 'cancelled';
  prefillNs: number;
  decodeNs: number;
  /** slots looked up and found; prefill counts distinct experts per layer and micro-batch */
  prefillHits: number;
  prefillMisses: number;
  decodeHits: number;
  decodeMisses: number;
  decodeSwaps: number;
  /** slots that `pruned` left unused: neither hits nor misses */
  decodeDropped: number;
  flashBytes: number;
  flashReads: number;
  stallNs: number;
  /** miss events lost because the ring was full; 0 in any healthy run */
  missEventsDropped: number;
  /** most expert bytes in memory at any moment of it */
  peakExpertBytes: number;
}

export interface EvalRequest {
  /** N+1 tokens; N are routed, and scored where they are not of a prompt */
  tokens: Int32Array;
  /** tokens per window; N is a multiple of it */
  context: number;
  spec: RoutingSpec;
  /** one token at a time through the real cache, instead of batched against a virtual one */
  stepped: boolean;
  /**
   * the first of each window's tokens are a prompt: prefilled, hence routed by the model's own choice unless the spec's
   * `biasPrefill` is set, and not scored; below `context`, default 0
   */
  promptTokens?: number;
  /** return which experts every token used; default false */
  recordRoutes?: boolean;
  /** return what the routers said of every token; needs windows without a prompt; default false */
  recordScores?: boolean;
  /** about the most that it takes beyond what the engine holds, by fewer tokens at a time; what it cannot do without, it takes; default: no bound */
  memoryBytes?: number;
}

export interface LayerResult {
  layer: number; capacity: number;
  hits: number; misses: number;
  /** shares of all slots: hits, misses and those that `pruned` left unused */
  missRate: number; swapRate: number; dropRate: number;
  /** mean softmax mass lost per routing event */
  massLost: number;
  meanLifetimeTokens: number | null;
}

/** One window; the caches live on across windows. */
export interface WindowResult {
  /** of scored tokens, per slot */
  hits: number; misses: number;
  /** sum over its scored tokens, in nats */
  nll: number;
  /** running mean of each MoE layer's logit range at the window's end, over all tokens so far */
  rangeMeans: number[];
}

/** One token of a stepped evaluation is EVAL_STEP_FIELDS numbers, in this order. Times are nanoseconds of CLOCK_MONOTONIC. */
export const EVAL_STEP_FIELDS = 6;
export const EVAL_STEP = { startNs: 0, endNs: 1, hits: 2, misses: 3, flashBytes: 4, stallNs: 5 } as const;

export interface EvalResult {
  /** scored */
  tokens: number;
  /** mean negative log likelihood, nats per token */
  crossEntropy: number;
  /** of scored tokens */
  hits: number; misses: number;
  /** one per distinct expert, layer and micro-batch of the prompts */
  promptHits: number; promptMisses: number;
  /** the rates are shares of all slots, as in `LayerResult` */
  missRate: number; swapRate: number; dropRate: number; massLost: number;
  /** admission to eviction in tokens of the layer, over evicted experts; null if none was evicted */
  meanLifetimeTokens: number | null;
  perLayer: LayerResult[];
  windows: WindowResult[];
  /** nats of each scored token */
  tokenNll: Float32Array;
  /**
   * where asked for: all N tokens x MoE layers x topK experts, best ranked first; -1 for those that `pruned` left unused,
   * and where nothing was computed: of a prompt, the last block sees the last token alone
   */
  routes: Int32Array | null;
  /** where asked for: all N tokens x MoE layers x experts, what the pull goes on (`ModelInfo.selectBy`) */
  scores: Float32Array | null;
  /** stepped: scored tokens x EVAL_STEP_FIELDS numbers; null for a batched one */
  steps: Float64Array | null;
  evalNs: number;
}

export interface FitRequest {
  /** N+1 tokens; N is a multiple of `context` */
  tokens: Int32Array;
  /** tokens per window */
  context: number;
  /** the last windows, which are scored instead of fitted; at least one */
  heldOutWindows: number;
  /** experts per layer that the scored windows keep, in [topK, experts] */
  capacity: number;
}

export interface FitResult {
  /** the file written, `<model>.prefetch` */
  path: string;
  bytes: number;
  /** all MoE layers but the first; of the held-out windows, foretold by the bare router (before) and by the map (after) */
  layers: {
    layer: number;
    /** share of a token's topK that is among the first topK foretold */
    sharedBefore: number; sharedAfter: number;
    /** selected experts that were absent, and those of them among the first 1.5 x topK absent ones foretold */
    absent: number; foundBefore: number; foundAfter: number;
  }[];
}

/** Cumulative since the engine was opened; per MoE layer, arrays in `moeLayers` order. */
export interface EngineCounters {
  prefillTokens: number; decodeTokens: number;
  prefillNs: number; decodeNs: number; stallNs: number;
  flashBytes: number; flashReads: number;
  /** misses of prefill and decode together: equals the last missNumber */
  missesTotal: number;
  missEventsDropped: number;
  /** of `flashBytes`, read to score a text; its misses are in no layer's counters */
  evaluationBytes: number;
  /** read by `warm`; not in `flashBytes` */
  warmBytes: number;
  /** specs that changed a capacity, and calls of `shrink` */
  resizes: number; shrinks: number;
  /** read times: count of reads of up to 2^i microseconds, i = 0..23 */
  readMicrosLog2: number[];
  /** tokens are decoded with pre-fetch now */
  prefetchActive: boolean;
  /** pre-fetch foretells experts by the map that `fitPrefetch` made, instead of by the bare routers */
  prefetchFitted: boolean;
  /** share of a token's time that pre-fetch saves, by the trials of `auto` so far and the one under way; negative where it costs; 0: not tried yet */
  prefetchGain: number;
  /** its standard error; pre-fetch stays on where the gain is at least three of them above zero */
  prefetchGainError: number;
  layers: {
    layer: number; capacity: number; resident: number;
    hits: number; misses: number; swaps: number;
    prefillHits: number; prefillMisses: number;
    /** sum over routing events of softmax mass lost */
    massLost: number; events: number;
    /** running mean of max(z) - min(z), the formula's delta */
    rangeMean: number;
    /** experts that left for a smaller capacity: a spec's, and one that `shrink` asked for */
    resizeEvictions: number; pressureEvictions: number;
    /** experts that `warm` admitted: neither hits nor misses */
    warmFills: number;
    /** of decoded tokens whose misses were guessed: experts guessed, those of them that were missed, all misses */
    guesses: number; guessesRight: number; guessable: number;
    /** guesses that were likely enough to be read */
    prefetchAsked: number;
    /** misses of which all, or some, had been read ahead when their layer was routed */
    prefetchReady: number; prefetchLate: number;
    /** bytes read ahead and given back unused */
    prefetchWastedBytes: number;
  }[];
}

/** `done`: every layer is full or its list at its end; else another list has come. `failures`: experts that could not be read. */
export interface WarmResult { done: boolean; experts: number; bytes: number; failures: number; lastFailure: string; }

/**
 * MoE layers x experts, over decoded tokens since the engine was opened: how often each expert was among the model's own
 * top-K, whatever bends the router, and how often it was selected.
 */
export interface ExpertUse { wanted: Float64Array; chosen: Float64Array; }

/**
 * A recorded run: what the routers said of every token (`scores` or `rows`), or only what they chose (`routes`). Scores are
 * token by token, all layers of each, so every layer has as many events; routes are layer by layer. Scores without routes:
 * the model chose the topK largest, ties by index.
 */
export interface RouteTrace {
  experts: number;
  /** experts of one event, at most */
  topK: number;
  /** events of each layer */
  layerEvents: number[];
  /** events x topK experts, best ranked first; -1 in slots that were not used */
  routes?: Int32Array | null;
  /** tokens x layers x experts; not finite: masked */
  scores?: Float32Array | null;
  /** the same at a byte each; a row is float32 minimum and step, little endian, then a level for each expert: z = minimum + step x level */
  rows?: Uint8Array | null;
  /** level 255 is a masked expert; default false: a level like the others */
  rowsMask?: boolean;
  /**
   * changes of capacity x (layer as in `layerEvents`, event of that layer before which it came into force, new capacity), a
   * layer's in the order of events; absent: none
   */
  changes?: Int32Array | null;
}

/** `belady`, the bound that no policy passes, is told the future: where nothing is bent it may be asked for. */
export interface WhatIf extends Omit<RoutingSpec, 'eviction'> { eviction?: Eviction | 'belady'; }

export interface ReplayRequest extends RouteTrace {
  whatIfs: WhatIf[];
  /** that many tokens, from the first, fill the caches and are not counted; default 0 */
  uncountedTokens?: number;
}

/** Counts of one layer; `massLost` is summed over events. The last two are of all events, uncounted ones included. */
export interface ReplayedLayer {
  events: number; hits: number; misses: number; swaps: number; dropped: number; massLost: number; evictions: number; lifetimeTokens: number;
}

/** LRU at the model's own choice; entry C of each is capacity C, from topK to all experts. */
export interface LruCurveLayer { references: number; misses: Float64Array; evictions: Float64Array; lifetimeTokens: Float64Array; }

export type EngineErrorCode =
  | 'MODEL_FORMAT' | 'NOT_MOE' | 'MODEL_CHANGED' | 'IO' | 'BAD_ARGUMENT' | 'CAPACITY' | 'CONTEXT_FULL' | 'BUSY' | 'CLOSED' | 'CANCELLED'
  | 'INTERNAL';

/** Opaque; dead after `close`. */
export type EngineHandle = { readonly __engine: unique symbol };

export interface EngineAddon {
  /** llama.cpp release and CPU backend in use, e.g. "v0.5.0 haswell" */
  version(): string;
  inspect(modelPath: string): Promise<ModelInfo>;
  /**
   * Writes the model with tensors aligned to 4096 and a checksum for every expert and every other tensor; still a GGUF.
   * Goes on where an interrupted call stopped. Fails if `target` exists, unless `replace`.
   */
  pack(source: string, target: string, replace: boolean, onProgress: (done: number, total: number) => void): Promise<WriteResult>;
  /** Reads all of a packed file and compares it with its checksums. */
  check(modelPath: string, onProgress: (done: number, total: number) => void): Promise<CheckResult>;
  /**
   * Widens every expert's hidden width without changing the model's function, so that a small model gets experts of a
   * realistic size. Writes `target` in full (no holes), packed; resumed and refused as `pack` is.
   */
  widen(source: string, target: string, options: WidenOptions, onProgress: (done: number, total: number) => void): Promise<WriteResult & { width: number }>;
  /** Quantises the experts through ggml; what does not fit the type that was asked for is an error. Resumed and refused as `pack` is. */
  quantize(source: string, target: string, options: QuantizeOptions, onProgress: (done: number, total: number) => void): Promise<WriteResult & { relativeError: number }>;
  /**
   * Runs each what-if through the record from an empty cache; see native/engine/replay.cpp. Needs no model. Layers of each, in
   * the order of `whatIfs`. Progress counts what-ifs; CANCELLED where `onProgress` throws.
   */
  replay(request: ReplayRequest, onProgress: (done: number, total: number) => void): Promise<ReplayedLayer[][]>;
  /** Every capacity at once, in one pass over the record, which may hold no changes of capacity; see native/engine/lru-curve.cpp. */
  lruCurve(request: RouteTrace & { uncountedTokens?: number }): Promise<LruCurveLayer[]>;
  open(options: OpenOptions): Promise<EngineHandle>;
  info(engine: EngineHandle): ModelInfo;
  memory(engine: EngineHandle): EngineMemory;
  /** Resolves when the spec is in force: at the next token boundary of a running request, at once when idle. */
  apply(engine: EngineHandle, spec: RoutingSpec): Promise<void>;
  /**
   * Gives memory back: evicts down to `capacities`, one per MoE layer; those that are no lower than what is in force
   * change nothing. Resolves when it is done: at the next layer of a running request, at once when idle. Holds until the
   * next spec is applied, which alone can grow a cache. Rejects with CAPACITY below topK.
   */
  shrink(engine: EngineHandle, capacities: number[]): Promise<void>;
  /** as applied, with the capacities that every `shrink` since has left */
  spec(engine: EngineHandle): Required<RoutingSpec>;
  /** Drops every resident expert and resets the running means; rejects with BUSY while a request runs. */
  dropCache(engine: EngineHandle): Promise<void>;
  /**
   * Fills the room that the cache has left while no request runs: for each MoE layer experts, best first; lists may be short.
   * Resolves when it is done, which with requests in between may take long; a request stops it at once and it goes on
   * after it. Rejects with BAD_ARGUMENT for an expert that does not exist or is there twice, with nothing changed.
   */
  warm(engine: EngineHandle, ranked: Int32Array[]): Promise<WarmResult>;
  tokenize(engine: EngineHandle, text: string, addBos: boolean, parseSpecial: boolean): Int32Array;
  /** bytes of one token's text */
  detokenize(engine: EngineHandle, tokens: Int32Array): Uint8Array;
  /** the model's chat template (Jinja source) or null */
  chatTemplate(engine: EngineHandle): string | null;
  /** formats a conversation with the model's own template (llama.cpp's), or a plain fallback where it has none */
  applyChatTemplate(engine: EngineHandle, messages: { role: string; content: string }[]): string;
  /** One request at a time; a second rejects with BUSY. `onStep` is called in order, off the decode path. */
  generate(engine: EngineHandle, request: GenerateRequest, onStep: (step: Step) => void): Promise<GenerateResult>;
  /**
   * Ends the running request at the next layer; false if `requestId` is not running. A cancelled `generate` resolves
   * (`finishReason: 'cancelled'`); a running `evaluate` answers to the id 'evaluate' and rejects with CANCELLED.
   */
  cancel(engine: EngineHandle, requestId: string): boolean;
  /** Never touches the logical cache of `generate` in batched mode; `stepped` starts and leaves it empty. */
  evaluate(engine: EngineHandle, request: EvalRequest, onProgress: (done: number, total: number) => void): Promise<EvalResult>;
  /** Fits what pre-fetch foretells experts by; the engine reads the file when it next opens the model. Cancelled as `evaluate` is. */
  fitPrefetch(engine: EngineHandle, request: FitRequest, onProgress: (done: number, total: number) => void): Promise<FitResult>;
  counters(engine: EngineHandle): EngineCounters;
  expertUse(engine: EngineHandle): ExpertUse;
  /** Waits for the running request to end (cancelled) and frees everything. Calling it twice is fine. */
  close(engine: EngineHandle): Promise<void>;
}

/** Loads the addon; throws where it has not been built. */
export function loadAddon(path = defaultAddonPath()): EngineAddon {
  if (!existsSync(path)) {
    throw new Error(`native engine not found at ${path}; build it with: npm run build:native`);
  }
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  return require(path) as EngineAddon;
}

/** `moefleet_bench`: the stock library and the bare disk, for `moefleet engine bench` to measure against. */
export function benchToolPath(): string {
  return join(__dirname, '..', 'native', 'build', 'moefleet_bench');
}

function defaultAddonPath(): string {
  return join(__dirname, '..', 'native', 'build', 'moefleet_engine.node');
}
