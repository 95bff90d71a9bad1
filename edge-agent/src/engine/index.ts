/** The engine for programs of this repository: the addon behind typed errors, and pure helpers around a model. */
export { bytesOfCapacities, capacitiesForBytes } from './capacity-plan';
export { Engine, engineVersion, EVALUATE_REQUEST_ID, lruCurve, replay } from './engine';
export {
  BadArgumentError, CapacityError, ContextFullError, EngineBusyError, EngineCancelledError, EngineClosedError, EngineError,
  EngineInternalError, EngineIoError, ModelChangedError, ModelFormatError, NotMoeError, toEngineError,
} from './engine-error';
export { checkModel, inspectModel, packModel, quantizeModel, widenModel } from './model-files';
export { modelHash } from './model-hash';
export { routerEntropy } from './router-entropy';
export { MOST_WINDOW_ROW_BYTES, packScores, quantise, unpackWindow, WindowFormatError, type WindowRows } from './router-window';
export { benchToolPath, EVAL_STEP, EVAL_STEP_FIELDS, MISS_EVENT, MISS_EVENT_FIELDS, PREFETCH } from '../native';
export type {
  CheckResult, EngineCounters, EngineErrorCode, EngineMemory, EvalRequest, EvalResult, Eviction, ExpertUse, FitRequest, FitResult, GenerateRequest, GenerateResult, LayerResult, LruCurveLayer, ModelInfo, Prefetch,
  OpenOptions, QuantizeOptions, ReplayedLayer, ReplayRequest, RouteTrace, Routing, RoutingSpec, Step, TensorPlace, WarmResult, WhatIf, WidenOptions, WindowResult, WriteResult,
} from '../native';
