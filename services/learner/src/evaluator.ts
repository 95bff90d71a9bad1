/** The engine as the learner sees it: one model, one text, and the routing to score it with. */

/** A model or a text that cannot be learned from; what to do is in the message. */
export class EvaluationInputError extends Error {
  override readonly name = 'EvaluationInputError';
}

export interface EvaluationSubject {
  /** hex */
  modelHash: string;
  /** SHA-256 of the text's bytes, hex */
  textHash: string;
  moeLayers: number;
  experts: number;
  topK: number;
}

export interface EvaluationPoint { lambda: number; topJ: number; capacities: readonly number[]; }

export interface Evaluation {
  /** nats per token */
  crossEntropy: number;
  /** mean nats per token of each window */
  windows: Float64Array;
  missRate: number;
  swapRate: number;
  massLost: number;
  evalNs: number;
}

export interface Evaluator {
  readonly subject: EvaluationSubject;
  /** `onProgress` in [0,1]. Rejects when `signal` is aborted. */
  evaluate(point: EvaluationPoint, onProgress: (fraction: number) => void, signal: AbortSignal): Promise<Evaluation>;
  close(): Promise<void>;
}
