/**
 * What the request queue shows of a running generation to whoever samples its router logits. The queue asks once per
 * request, hands over every step in order, and says when the request has ended, however it ended.
 */
import type { Step } from './native';

export interface StepObserver {
  /** Asked when a request starts: whether the engine is to capture the router's logits of its decoded tokens. */
  wantsRouter(): boolean;
  /** Every step in order; `step.routerLogits` is set on decode steps of requests that capture them. */
  onStep(requestId: string, step: Step): void;
  /** Exactly once per request that was started, after its last step. */
  onEnd(requestId: string): void;
}
