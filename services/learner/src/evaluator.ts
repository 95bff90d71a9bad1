/** The engine as the learner sees it: one model, some texts, and the routing to score them with. */

import type { Setting } from './model';

/** A model or a text that cannot be learned from; what to do is in the message. */
export class EvaluationInputError extends Error {
  override readonly name = 'EvaluationInputError';
}

/** One kind of use, and the text that stands for it. */
export interface Domain {
  /** for people: the file's name without its ending */
  name: string;
  /** SHA-256 of the text's bytes, hex */
  textHash: string;
}

export interface EvaluationSubject {
  /** for people: the file's name without its ending */
  modelName: string;
  /** hex */
  modelHash: string;
  domains: Domain[];
  moeLayers: number;
  experts: number;
  topK: number;
  /** per MoE layer */
  expertBytes: number[];
  /** surfaces of another engine are measured anew */
  engineVersion: string;
}

export type EvaluationPoint = Setting;

export interface Evaluation {
  /** nats per token */
  crossEntropy: number;
  /** mean nats per token of each window */
  windows: Float64Array;
  missRate: number;
  layerMissRates: number[];
  swapRate: number;
  massLost: number;
  evalNs: number;
}

export interface Evaluator {
  readonly subject: EvaluationSubject;
  /** `domain`: an index into `subject.domains`. `onProgress` in [0,1]. Rejects when `signal` is aborted. */
  evaluate(point: EvaluationPoint, domain: number, onProgress: (fraction: number) => void, signal: AbortSignal): Promise<Evaluation>;
  close(): Promise<void>;
}
