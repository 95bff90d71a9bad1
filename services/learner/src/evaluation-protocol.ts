/** What crosses between the learner and its evaluation process. */
import type { Evaluation, EvaluationPoint, EvaluationSubject } from './evaluator';

export interface EvaluationSource { modelPath: string; textPaths: readonly string[]; tokens: number; context: number; threads: number; }

export type ToChild =
  | { t: 'open'; source: EvaluationSource }
  | { t: 'evaluate'; point: EvaluationPoint; domain: number }
  | { t: 'cancel' };

export type FromChild =
  | { t: 'opened'; subject: EvaluationSubject }
  | { t: 'progress'; fraction: number }
  | { t: 'evaluated'; evaluation: Evaluation }
  /** `badInput`: the model or the text; else the engine or the machine */
  | { t: 'failed'; message: string; badInput: boolean };
