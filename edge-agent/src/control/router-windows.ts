/**
 * Records windows of router scores when the spec asks for it: consecutive decode tokens of one request under one
 * generation, all MoE layers, a byte per score, compressed. Their bytes stay within the spec's budgets
 * (window-budget.ts); what would go over is dropped and counted. The rest of a request that is shorter than a window is
 * recorded where it is at least half of one. Off, it costs a request one question.
 */
import { randomUUID } from 'node:crypto';
import type { EffectiveSpec, RouterSampling, RouterWindow } from '@moefleet/proto';
import { routerEntropy } from '../engine/router-entropy';
import { packScores } from '../engine/router-window';
import type { ModelInfo, Step } from '../native';
import type { StepObserver } from '../step-observer';
import type { WindowBudget } from './window-budget';

/** Larger ones would not pass the coordinator's bound. */
const MAX_WINDOW_BYTES = 2 * 1024 * 1024;

/** What is in force while a window is captured. */
export interface SamplingContext {
  sampling: RouterSampling;
  modelHash: string;
  model: Pick<ModelInfo, 'moeLayers' | 'expertBytes' | 'experts' | 'topK'>;
  /** asked once for a window, not for each token */
  spec: () => EffectiveSpec;
  generation: number;
}

export interface RouterWindowsOptions {
  /** null: off, or no model */
  context: () => SamplingContext | null;
  budget: Pick<WindowBudget, 'allows' | 'spend'>;
  /** rejects where it could not be kept */
  keep: (window: RouterWindow) => Promise<void>;
  nowMs?: () => number;
}

interface Capture { requestId: string; context: SamplingContext; rows: Float32Array[]; }

export class RouterWindows implements StepObserver {
  private capture: Capture | null = null;
  private recordedCount = 0;
  private droppedCount = 0;
  /** decode tokens that were not captured because a budget is used up */
  private uncaptured = 0;
  private packing: Promise<void> = Promise.resolve();

  constructor(private readonly options: RouterWindowsOptions) {}

  get counts(): { recorded: number; dropped: number } {
    return { recorded: this.recordedCount, dropped: this.droppedCount };
  }

  wantsRouter(): boolean {
    const context = this.options.context();
    return context !== null && this.options.budget.allows(context.sampling, 1);
  }

  onStep(requestId: string, step: Step): void {
    if (step.step === 0) return;
    const context = this.options.context();
    if (!context) return this.drop();
    if (!step.routerLogits) return this.skipped(context);
    if (this.capture && !sameRun(this.capture, requestId, context)) this.finish();
    this.capture ??= { requestId, context, rows: [] };
    this.capture.rows.push(step.routerLogits);
    if (this.capture.rows.length === context.sampling.windowTokens) this.finish();
  }

  onEnd(_requestId: string): void {
    this.finish();
  }

  /** Resolves when every captured window has been recorded or dropped. */
  idle(): Promise<void> {
    return this.packing;
  }

  private drop(): void {
    this.capture = null;
  }

  private skipped(context: SamplingContext): void {
    if (this.options.budget.allows(context.sampling, 1)) return;
    this.uncaptured += 1;
    if (this.uncaptured < context.sampling.windowTokens) return;
    this.uncaptured = 0;
    this.droppedCount += 1;
  }

  private finish(): void {
    const { capture } = this;
    this.capture = null;
    if (!capture || capture.rows.length * 2 < capture.context.sampling.windowTokens) return;
    this.packing = this.packing.then(() => this.pack(capture)).catch(() => {
      this.droppedCount += 1;
    });
  }

  private async pack({ context, rows }: Capture): Promise<void> {
    const { modelHash, model: { moeLayers, expertBytes, experts, topK }, generation } = context;
    const spec = context.spec();
    const scores = new Float32Array(rows.length * moeLayers.length * experts);
    rows.forEach((row, i) => scores.set(row, i * moeLayers.length * experts));
    const packed = await packScores(scores, experts);
    const timeMs = this.now();
    if (packed.data.length > MAX_WINDOW_BYTES || !this.options.budget.allows(context.sampling, packed.data.length)) {
      this.droppedCount += 1;
      return;
    }
    this.options.budget.spend(packed.data.length);
    await this.options.keep({
      windowId: randomUUID(), modelHash, timeMs: BigInt(timeMs), tokens: rows.length, layers: moeLayers.length, experts, lambda: spec.lambda,
      generation: BigInt(generation), topK, moeLayers, expertBytes: expertBytes.map((bytes) => BigInt(bytes)), spec,
      entropyBits: routerEntropy(scores, moeLayers.length, experts), ...packed,
    });
    this.recordedCount += 1;
  }

  private now(): number {
    return (this.options.nowMs ?? Date.now)();
  }
}

function sameRun({ requestId, context }: Capture, otherId: string, other: SamplingContext): boolean {
  return requestId === otherId && context.generation === other.generation && context.modelHash === other.modelHash;
}
