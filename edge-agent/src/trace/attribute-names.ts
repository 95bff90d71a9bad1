/**
 * Every attribute name on the agent's spans, in one place. The `gen_ai.*` names are those of the OpenTelemetry
 * semantic conventions; as these are not stable yet, the package asks users to copy rather than import them, and a
 * test holds the copies against the package.
 */
import {
  ATTR_ERROR_TYPE, ATTR_SERVICE_INSTANCE_ID, ATTR_SERVICE_NAME, ATTR_SERVICE_VERSION,
} from '@opentelemetry/semantic-conventions';

export const RESOURCE = {
  serviceName: ATTR_SERVICE_NAME,
  serviceVersion: ATTR_SERVICE_VERSION,
  /** the boot id: one start of the supervisor */
  serviceInstanceId: ATTR_SERVICE_INSTANCE_ID,
  hostName: 'host.name',
  deviceId: 'moefleet.device.id',
} as const;

export const GEN_AI = {
  operationName: 'gen_ai.operation.name',
  providerName: 'gen_ai.provider.name',
  requestModel: 'gen_ai.request.model',
  requestMaxTokens: 'gen_ai.request.max_tokens',
  requestTemperature: 'gen_ai.request.temperature',
  requestTopP: 'gen_ai.request.top_p',
  requestSeed: 'gen_ai.request.seed',
  responseId: 'gen_ai.response.id',
  responseModel: 'gen_ai.response.model',
  responseFinishReasons: 'gen_ai.response.finish_reasons',
  usageInputTokens: 'gen_ai.usage.input_tokens',
  usageOutputTokens: 'gen_ai.usage.output_tokens',
} as const;

export const MOEFLEET = {
  requestId: 'moefleet.request.id',
  modelHash: 'moefleet.model.hash',
  /** wait in the request queue before the engine took it */
  requestQueueNs: 'moefleet.request.queue_ns',
  coldCache: 'moefleet.request.cold_cache',
  /** 0 for the first trace of a request, 1, 2, ... for its continuations */
  tracePart: 'moefleet.trace.part',
  traceParts: 'moefleet.trace.parts',
  misses: 'moefleet.misses',
  hits: 'moefleet.hits',
  swaps: 'moefleet.swaps',
  flashBytes: 'moefleet.flash.bytes',
  missEventsDropped: 'moefleet.miss_events_dropped',
  /** 0 for prefill, 1, 2, ... for the decode steps */
  step: 'moefleet.step',
  layer: 'moefleet.layer',
  expert: 'moefleet.expert',
  bytes: 'moefleet.bytes',
  queueWaitNs: 'moefleet.queue_wait_ns',
  stallNs: 'moefleet.stall_ns',
  prefetch: 'moefleet.prefetch',
  /** absent where nothing was evicted */
  evictedExpert: 'moefleet.evicted_expert',
  lambda: 'moefleet.lambda',
  generation: 'moefleet.generation',
  missNumber: 'moefleet.miss_number',
  reads: 'moefleet.reads',
} as const;

export const ERROR_TYPE = ATTR_ERROR_TYPE;
