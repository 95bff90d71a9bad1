/**
 * An engine host within the test's own process whose answers and misses are a script: for faults and timing that a
 * real engine cannot be asked for. A token is a byte of text, the prompt's tokens likewise.
 */
import { type EngineHost, type HostState, HostUnavailableError } from '../../edge-agent/src/engine-host';
import {
  type EngineCounters, type EngineMemory, type EvalResult, type GenerateRequest, type GenerateResult, MISS_EVENT, MISS_EVENT_FIELDS,
  type ModelInfo, type RoutingSpec, type Step,
} from '../../edge-agent/src/native';

export interface Script {
  /** the bytes of each token's text, in order; generation ends after the last */
  pieces: Uint8Array[];
  /** misses of a step; 0 is the prefill */
  misses: (step: number) => number;
  /** events withheld of a step, as if the ring had been full */
  lostEvents: (step: number) => number;
  /** awaited before each step; a step of a request can be held back here */
  beforeStep: (step: number, requestId: string) => Promise<void>;
}

export class ScriptedHost implements EngineHost {
  state: HostState;
  starts = 1;
  crashes = 0;
  /** every request that reached the engine, and those being worked on at once at most */
  readonly requests: GenerateRequest[] = [];
  concurrent = 0;
  mostConcurrent = 0;
  /** request ids that were aborted while the engine worked on them */
  readonly cancelled: string[] = [];
  missNumber = 0;
  private readonly script: Script;
  private readonly listeners = new Set<(state: HostState) => void>();

  constructor(script: Partial<Script> = {}, contextTokens = 256) {
    this.script = {
      pieces: textPieces('Hello, world.'), misses: () => 0, lostEvents: () => 0,
      beforeStep: () => new Promise((resolve) => setImmediate(resolve)), ...script,
    };
    this.state = { t: 'ready', model: { hash: 'ab'.repeat(32), info: modelInfo(), contextTokens } };
  }

  setState(state: HostState): void {
    this.state = state;
    for (const listener of this.listeners) listener(state);
  }

  onStateChange(listener: (state: HostState) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  async apply(_spec: RoutingSpec): Promise<void> {}
  async shrink(): Promise<void> {}
  async dropCache(): Promise<void> {}

  async tokenize(text: string): Promise<Int32Array> {
    return Int32Array.from(Buffer.from(text, 'utf8'));
  }

  async applyChatTemplate(messages: { role: string; content: string }[]): Promise<string> {
    return messages.map(({ role, content }) => `<${role}>${content}`).join('');
  }

  async generate(request: GenerateRequest, onStep: (step: Step) => void, signal: AbortSignal): Promise<GenerateResult> {
    this.requests.push(request);
    this.concurrent += 1;
    this.mostConcurrent = Math.max(this.mostConcurrent, this.concurrent);
    try {
      return await this.work(request, onStep, signal);
    } finally {
      this.concurrent -= 1;
    }
  }

  async evaluate(): Promise<EvalResult> {
    throw new HostUnavailableError('the script has no evaluation', false);
  }

  async counters(): Promise<EngineCounters | null> {
    if (this.state.t !== 'ready') return null;
    return {
      prefillTokens: 3, decodeTokens: 5, prefillNs: 1e9, decodeNs: 2e9, stallNs: 5e8, flashBytes: 4096, flashReads: 7,
      missesTotal: this.missNumber, missEventsDropped: 0, resizes: 0, shrinks: 0, evaluationBytes: 0, warmBytes: 0, readMicrosLog2: new Array<number>(24).fill(0), prefetchActive: false, prefetchFitted: false, prefetchGain: 0, prefetchGainError: 0,
      layers: [0, 1].map((layer) => ({
        layer, capacity: 8, resident: 6, hits: 10, misses: 4, swaps: 1, prefillHits: 2, prefillMisses: 3, massLost: 0.5, events: 14, rangeMean: 6, resizeEvictions: 0, pressureEvictions: 0, warmFills: 0,
        guesses: 0, guessesRight: 0, guessable: 0, prefetchAsked: 0, prefetchReady: 0, prefetchLate: 0, prefetchWastedBytes: 0,
      })),
    };
  }

  async memory(): Promise<EngineMemory | null> {
    return null;
  }

  private async work(request: GenerateRequest, onStep: (step: Step) => void, signal: AbortSignal): Promise<GenerateResult> {
    const { pieces, misses, lostEvents, beforeStep } = this.script;
    const result: GenerateResult = {
      promptTokens: request.prompt.length, completionTokens: 0, finishReason: 'stop', prefillNs: 1e6, decodeNs: 0,
      prefillHits: 2, prefillMisses: 0, decodeHits: 0, decodeMisses: 0, decodeSwaps: 0, decodeDropped: 0, flashBytes: 0, flashReads: 0, stallNs: 0, missEventsDropped: 0, peakExpertBytes: 0,
    };
    for (let step = 0; step < pieces.length; step += 1) {
      await beforeStep(step, request.requestId);
      if (signal.aborted) {
        this.cancelled.push(request.requestId);
        return { ...result, finishReason: 'cancelled' };
      }
      const count = misses(step);
      const events = this.missEvents(step, count - lostEvents(step));
      result.missEventsDropped += lostEvents(step);
      if (step === 0) result.prefillMisses += count;
      else result.decodeMisses += count;
      result.flashBytes += count * 1000;
      result.completionTokens += 1;
      const startNs = Number(process.hrtime.bigint());
      if (step > 0) result.decodeNs += 1e6;
      onStep({ step, token: pieces[step]![0] ?? 0, text: pieces[step]!, startNs, endNs: startNs + 1e6, hits: 4, misses: count, missEvents: events, routerLogits: null });
      if (result.completionTokens >= request.maxTokens) return { ...result, finishReason: 'length' };
    }
    return result;
  }

  private missEvents(step: number, count: number): Float64Array {
    const events = new Float64Array(count * MISS_EVENT_FIELDS);
    const nowNs = Number(process.hrtime.bigint());
    for (let index = 0; index < count; index += 1) {
      this.missNumber += 1;
      const values: Record<keyof typeof MISS_EVENT, number> = {
        missNumber: this.missNumber, step, layer: index % 6, expert: (this.missNumber * 7) % 32, bytes: 1000, startNs: nowNs + index, endNs: nowNs + index + 500,
        queueWaitNs: 11, stallNs: 22, evictedExpert: index % 2 === 0 ? -1 : 5, prefetch: 0, lambda: 0.25, generation: 3, reads: 2,
      };
      for (const [name, field] of Object.entries(MISS_EVENT)) events[index * MISS_EVENT_FIELDS + field] = values[name as keyof typeof MISS_EVENT];
    }
    return events;
  }
}

/** One piece per character. */
export function textPieces(text: string): Uint8Array[] {
  return [...text].map((character) => Buffer.from(character, 'utf8'));
}

function modelInfo(): ModelInfo {
  return {
    path: '/models/scripted-moe.gguf', files: ['/models/scripted-moe.gguf'], fileBytes: 1, architecture: 'qwen2moe', name: 'Scripted MoE', layers: 6, moeLayers: [0, 1, 2, 3, 4, 5],
    experts: 32, topK: 4, expertBytes: [1000, 1000, 1000, 1000, 1000, 1000], denseBytes: 1, tokenCycleBytes: 24000, alignment: 32, packVersion: 0,
    contextTrain: 256, vocab: 4096, selectBy: 'logits', normalisesWeights: false, tensors: [],
  };
}
