/**
 * Measures what the device does under the spec in force: every prompt, the first from a cold cache
 * (so a measurement starts cold once, and the later prompts find what the earlier ones left), then, where a text is
 * given, its cross-entropy at the spec in force and at lambda 0 on the same tokens. It goes through the request queue
 * as users' requests do; a spec or model that changes meanwhile ends it, as half of the figures would belong to
 * another.
 */
import { randomUUID } from 'node:crypto';
import type { Measure, MeasureResult, TaskUpdate } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { type EngineHost, HostUnavailableError } from '../engine-host';
import type { EngineQueue } from '../engine-queue';
import { type EvalResult, MISS_EVENT, MISS_EVENT_FIELDS, type RoutingSpec, type Step } from '../native';
import type { InForce } from './desired-applier';
import { bendsNothing } from './effective-routing';
import { MeasureError, type MeasurePlan, planMeasure, scorableTokens } from './measure-request';
import { effectiveOf } from './reported';

/** Decode steps between two reports of progress. */
const PROGRESS_STEPS = 16;

export interface MeasureSources {
  host: EngineHost;
  queue: EngineQueue;
  inForce: () => InForce | null;
  send: (update: TaskUpdate) => void;
  /** what scoring a text may take of memory now; undefined: as much as it likes */
  scoringBytes: () => number | undefined;
  log: Logger;
}

type Progress = (fraction: number, what: string) => void;

interface Generated { decodeTokens: number; decodeNs: number; hits: number; misses: number; swaps: number; flashBytes: number; prefillMisses: number; prefillFlashBytes: number; }

export class MeasureTasks {
  private running: { taskId: string; abort: AbortController; done: Promise<void> } | null = null;
  private scoringNow = false;

  constructor(private readonly sources: MeasureSources) {}

  /** A text is scored at this moment: the engine holds a context for that beside its cache. */
  get scoring(): boolean {
    return this.scoringNow;
  }

  /** Answers through `send`, with progress and then with the result or the reason why there is none. */
  begin(taskId: string, measure: Measure): void {
    if (this.running?.taskId === taskId) return;
    if (this.running) return this.fail(taskId, `the device is being measured already (task ${this.running.taskId}); try again when that is done`);
    const abort = new AbortController();
    const done = this.run(taskId, measure, abort.signal)
      .then((result) => this.sources.send({ taskId, state: { $case: 'measured', value: result } }))
      .catch((error: unknown) => this.fail(taskId, abort.signal.aborted ? 'cancelled' : (error as Error).message))
      .finally(() => {
        this.running = null;
      });
    this.running = { taskId, abort, done };
  }

  cancel(taskId: string): void {
    if (this.running?.taskId === taskId) this.running.abort.abort(new MeasureError('cancelled'));
  }

  /** Ends whatever runs and waits for it. */
  async stop(): Promise<void> {
    const { running } = this;
    running?.abort.abort(new MeasureError('cancelled'));
    await running?.done;
  }

  private fail(taskId: string, reason: string): void {
    this.sources.log.warn({ taskId, reason }, 'measurement failed');
    this.sources.send({ taskId, state: { $case: 'failed', value: { reason } } });
  }

  private async run(taskId: string, measure: Measure, signal: AbortSignal): Promise<MeasureResult> {
    const { host } = this.sources;
    if (host.state.t !== 'ready') throw new MeasureError(host.state.t === 'failed' ? `no engine: ${host.state.reason}` : 'no model is loaded yet; try again when the device is ready');
    const under = this.sources.inForce();
    if (!under) throw new MeasureError('no spec is in force yet; try again when the device is ready');
    const plan = planMeasure(measure, host.state.model.contextTokens);
    const progress: Progress = (fraction, what) => this.sources.send({ taskId, state: { $case: 'progress', value: { fraction, what } } });
    const evaluations = plan.text ? 2 : 0;
    const parts = plan.prompts.length + evaluations;
    progress(0, 'waiting for the engine');
    const generated = await this.generateAll(plan, host.state.model.contextTokens, under, (done, what) => progress(done / parts, what), signal);
    const scored = plan.text
      ? await this.score(plan.text, under, (done, what) => progress((plan.prompts.length + done * evaluations) / parts, what), signal)
      : null;
    return {
      spec: effectiveOf(under),
      generation: under.record.generation,
      decodeTokens: BigInt(generated.decodeTokens),
      decodeNs: BigInt(Math.round(generated.decodeNs)),
      hits: BigInt(generated.hits),
      misses: BigInt(generated.misses),
      swaps: BigInt(generated.swaps),
      flashBytes: BigInt(generated.flashBytes),
      prefillMisses: BigInt(generated.prefillMisses),
      prefillFlashBytes: BigInt(generated.prefillFlashBytes),
      crossEntropy: scored?.underSpec,
      crossEntropyLambdaZero: scored?.lambdaZero,
      textTokens: scored?.tokens ?? 0,
      windowCrossEntropy: scored?.windows ?? [],
      windowCrossEntropyLambdaZero: scored?.windowsLambdaZero ?? [],
      textMissRate: scored?.missRate,
      textSwapRate: scored?.swapRate,
    };
  }

  /** `progress` in prompts done. */
  private async generateAll(plan: MeasurePlan, contextTokens: number, under: InForce, progress: Progress, signal: AbortSignal): Promise<Generated> {
    const sum: Generated = { decodeTokens: 0, decodeNs: 0, hits: 0, misses: 0, swaps: 0, flashBytes: 0, prefillMisses: 0, prefillFlashBytes: 0 };
    for (const [i, text] of plan.prompts.entries()) {
      const prompt = await this.sources.host.tokenize(text, true, false);
      if (prompt.length + plan.tokensPerPrompt > contextTokens) {
        throw new MeasureError(`prompts[${i}]: ${prompt.length} tokens and ${plan.tokensPerPrompt} to generate exceed the context of ${contextTokens}`);
      }
      const onStep = (step: Step): void => {
        if (step.step === 0) sum.prefillFlashBytes += missBytes(step);
        else sum.decodeTokens += 1;
        if (step.step % PROGRESS_STEPS === 0) progress(i + step.step / plan.tokensPerPrompt, `prompt ${i + 1} of ${plan.prompts.length}`);
      };
      const generate = {
        requestId: randomUUID(), prompt, maxTokens: plan.tokensPerPrompt, temperature: plan.temperature, topP: 1, seed: plan.seed + i, coldCache: i === 0, captureRouter: false,
      };
      const { result } = await this.sources.queue.complete({ generate, operation: 'measure', traceparent: null }, onStep, signal);
      if (result.finishReason === 'cancelled') throw signal.reason ?? new MeasureError('cancelled');
      this.checkUnchanged(under);
      sum.decodeNs += result.decodeNs;
      sum.hits += result.decodeHits;
      sum.misses += result.decodeMisses;
      sum.swaps += result.decodeSwaps;
      sum.flashBytes += result.flashBytes;
      sum.prefillMisses += result.prefillMisses;
    }
    return sum;
  }

  /** Both in one turn of the queue. `progress` in [0,1]. */
  private async score(text: NonNullable<MeasurePlan['text']>, under: InForce, progress: Progress, signal: AbortSignal) {
    const { host, queue } = this.sources;
    const all = await host.tokenize(text.text, false, false);
    const count = scorableTokens(all.length, text.tokens, text.context);
    const tokens = all.slice(0, count + 1);
    const { routing } = under.effective;
    return queue.exclusive((running) => this.whileScoring(async () => {
      const evaluate = async (spec: RoutingSpec, done: number, what: string): Promise<EvalResult> => {
        const memoryBytes = this.sources.scoringBytes();
        const request = { tokens, context: text.context, spec, stepped: false, ...(memoryBytes === undefined ? {} : { memoryBytes }) };
        return host.evaluate(request, (part, total) => progress(done + part / total / 2, what), running);
      };
      const lambdaZero = await evaluate({ ...routing, routing: 'original' }, 0, 'scoring the text at lambda 0');
      const underSpec = bendsNothing(routing) ? lambdaZero : await evaluate(routing, 0.5, 'scoring the text under the spec in force');
      this.checkUnchanged(under);
      return {
        underSpec: underSpec.crossEntropy, lambdaZero: lambdaZero.crossEntropy, tokens: count,
        windows: windowMeans(underSpec), windowsLambdaZero: windowMeans(lambdaZero), missRate: underSpec.missRate, swapRate: underSpec.swapRate,
      };
    }), signal);
  }

  private async whileScoring<T>(work: () => Promise<T>): Promise<T> {
    this.scoringNow = true;
    try {
      return await work();
    } finally {
      this.scoringNow = false;
    }
  }

  private checkUnchanged(under: InForce): void {
    if (this.sources.host.state.t !== 'ready') throw new HostUnavailableError('the engine host ended during the measurement', true);
    const now = this.sources.inForce();
    if (now?.record.generation === under.record.generation && now.modelHash === under.modelHash) return;
    throw new MeasureError(`the spec changed from generation ${under.record.generation} to ${now?.record.generation ?? 'none'} during the measurement; measure again`);
  }
}

/** Nats per token of each window; all windows are equally long. */
function windowMeans({ windows, tokens }: EvalResult): number[] {
  return windows.map(({ nll }) => nll / (tokens / windows.length));
}

function missBytes({ missEvents }: Step): number {
  let bytes = 0;
  for (let at = MISS_EVENT.bytes; at < missEvents.length; at += MISS_EVENT_FIELDS) bytes += missEvents[at]!;
  return bytes;
}
