/** The learner's core: pure functions of what was measured and observed. See "The model" in the README. */
export { type DeviceMisses, deviceMisses, type ObservedMisses } from './device-misses';
export { type MissCurve, splitBytes } from './layer-split';
export { type MemorySight, type MemoryState, observeMemory } from './memory-budget';
export {
  type Bound, budgetUse, type Decision, equallyFast, type Frozen, FROZEN_REASONS, type FrozenReason, type Hold, type Outcome, type ProposalInputs, proposeSetting, type QualityBudget, type Scored, type SettingDecision, within,
} from './propose-setting';
export {
  type Candidate, type DomainEstimate, type Estimate, type MeasuredDomain, type MeasuredPoint, type QualityPrediction, QualitySurface,
} from './quality-surface';
export {
  deviceLambda, fieldsOf, ROUTING_NAMES, type RoutingFields, settingOfFields, settingText, strengths, strengthText,
} from './routing-strength';
export { bytesOfCapacities, holdsEverything, type ModelShape, sameCapacities, sameSetting, type Setting } from './setting';
export {
  type Drift, fitPrior, NO_EVIDENCE, observe, type Pair, posterior, predictSpeed, readingUncertainty, type SpeedEvidence, type SpeedPosterior, type SpeedPrediction,
  type SpeedPrior, type SpeedTerm, VAGUE_PRIOR,
} from './speed-model';
export { type LayerWindow, type TelemetryWindow, windowBetween, type WindowOutcome } from './telemetry-window';
