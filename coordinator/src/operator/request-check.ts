/** Turns operators' and learners' requests into what the coordinator works with, or says what is wrong with them. */
import { type ChangeConfigRequest, Eviction, type LabelSelector, type Measure, type Proposal, type QualitySurface, Routing, type SetModel, type Target as TargetMessage } from '@moefleet/proto';
import { canonical, parseSelector, parseVersion, printSelector, type Selector, SELECTOR_BOUND, SelectorError, selectorOfLabels } from '@moefleet/runtime';
import type { ModelStore } from '../artifacts/model-store';
import { InvalidRequestError } from '../errors';
import { checkDigest, checkId, checkLabels } from '../names';
import { type EvictionPolicy, MOST_HALF_LIFE } from '../registry/pin';
import type { Change, Target } from '../rollout/change';
import { checkRouting } from './routing-check';
import { bytes, finite, MOST_EXPERTS, share, within } from './value-check';

const DEFAULT_TIMEOUT_MS = 30_000;
const MOST_TIMEOUT_MS = 600_000;
const MOST_WHY = 500;
const LEAST_EXPIRY_MS = 1000n;
const MOST_EXPIRY_MS = 365n * 86_400_000n;
const MOST_WINDOW_TOKENS = 65_536;
const MOST_PROMPTS = 256;
const MOST_PROMPT_CHARACTERS = 65_536;
const MOST_TASK_TOKENS = 1_000_000;
const MOST_POINTS = 100_000;
/** Two times of day that differ, or nothing. */
const QUIET_HOURS = /^(?:((?:[01]\d|2[0-3]):[0-5]\d)-(?!\1)(?:[01]\d|2[0-3]):[0-5]\d)?$/;
/** A reader that is much slower is cut off by the listener for models (blobs/blob-server.ts). */
const LEAST_RATE = 8192n;

export interface CheckedChange { target: Target; change: Change; why: string; timeoutMs: number }

/** `models`: those that may be set. */
export async function checkChange(request: ChangeConfigRequest, nowMs: number, models: Pick<ModelStore, 'find'>): Promise<CheckedChange> {
  const timeoutMs = checkTimeout(request.timeoutMs);
  const change = request.change?.$case === 'setModel' ? await readModel(request.change.value, models) : readChange(request.change);
  return { target: checkTarget(request.target), change: { ...change, ...readExpiry(request.expiresInMs, change, nowMs) }, why: checkWhy(request.why), timeoutMs };
}

function readExpiry(expiresInMs: bigint | undefined, change: Change, nowMs: number): Pick<Change, 'expiresMs'> {
  if (expiresInMs === undefined) return {};
  if (change.t.startsWith('clear')) throw new InvalidRequestError('expires_in_ms', expiresInMs, 'possible with a change that clears; only a pin that is set can end by itself');
  if (expiresInMs < LEAST_EXPIRY_MS || expiresInMs > MOST_EXPIRY_MS) throw new InvalidRequestError('expires_in_ms', expiresInMs, 'a time from 1 s to 365 days');
  return { expiresMs: nowMs + Number(expiresInMs) };
}

export function checkTimeout(timeoutMs: number): number {
  if (timeoutMs > MOST_TIMEOUT_MS) throw new InvalidRequestError('timeout_ms', timeoutMs, `at most ${MOST_TIMEOUT_MS}`);
  return timeoutMs || DEFAULT_TIMEOUT_MS;
}

export function checkWhy(why: string): string {
  if (why.length > MOST_WHY) throw new InvalidRequestError('why', `${why.length} characters`, `at most ${MOST_WHY}`);
  return why;
}

export function checkTarget(target: TargetMessage | undefined): Target {
  switch (target?.kind?.$case) {
    case 'all':
      if (!target.kind.value) throw new InvalidRequestError('target.all', false, 'true, or another kind of target');
      return { t: 'all' };
    case 'deviceId': return { t: 'device', deviceId: checkId('target.device_id', target.kind.value) };
    case 'selector': return { t: 'selector', selector: checkSelector('target.selector', target.kind.value) };
    case undefined: throw new InvalidRequestError('target', 'nothing', 'all, a device id or a selector');
  }
}

/** In canonical form, with at least one requirement. */
export function checkSelector(field: string, { matchLabels, expression }: LabelSelector): Selector {
  const exact = selectorOfLabels(checkLabels(`${field}.match_labels`, matchLabels));
  const selector = expression === '' ? exact : canonical([...exact, ...readExpression(`${field}.expression`, expression)]);
  if (selector.length === 0) throw new InvalidRequestError(field, 'nothing', 'a selector such as class=phone');
  if (printSelector(selector).length > SELECTOR_BOUND.characters) throw new InvalidRequestError(field, `${printSelector(selector).length} characters`, `at most ${SELECTOR_BOUND.characters}`);
  return selector;
}

function readExpression(field: string, expression: string): Selector {
  try {
    return parseSelector(expression);
  } catch (error) {
    if (error instanceof SelectorError) throw new InvalidRequestError(field, expression, `a selector (${error.message})`);
    throw error;
  }
}

async function readModel({ name, bytesPerSecond, quietHours }: SetModel, models: Pick<ModelStore, 'find'>): Promise<Change> {
  if (!QUIET_HOURS.test(quietHours)) throw new InvalidRequestError('set_model.quiet_hours', quietHours, 'a span of the day such as 08:00-18:00 (from, to)');
  const rate = bytesPerSecond === undefined ? {} : { bytesPerSecond: bytes('set_model.bytes_per_second', bytesPerSecond, LEAST_RATE) };
  const { manifestSha256, bytes: size } = await models.find(name);
  return { t: 'setModel', model: { name, manifestSha256, bytes: size, quietHours, ...rate } };
}

function readChange(change: Exclude<ChangeConfigRequest['change'], { $case: 'setModel' }>): Change {
  switch (change?.$case) {
    case undefined: throw new InvalidRequestError('change', 'nothing', 'a change');
    case 'clearLambda': return { t: 'clearRouting' };
    case 'clearEviction': return { t: 'clearEviction' };
    case 'clearCache': return { t: 'clearCache' };
    case 'clearAgent': return { t: 'clearAgent' };
    case 'clearModel': return { t: 'clearModel' };
    case 'setAgent': return { t: 'setAgent', version: checkVersion('set_agent.version', change.value.version), allowDowngrade: change.value.allowDowngrade };
    case 'setLambda': {
      const { lambda, topJ } = change.value;
      return { t: 'setRouting', routing: { lambda: share('set_lambda.lambda', lambda), topJ: topJ === undefined ? null : within('set_lambda.top_j', topJ, 0, MOST_EXPERTS) } };
    }
    case 'setRouting': return { t: 'setRouting', routing: checkRouting(change.value) };
    case 'setEviction': return checkEviction(change.value.eviction, change.value.halfLifeTokens);
    case 'setCache': {
      const { size } = change.value;
      if (!size) throw new InvalidRequestError('set_cache.size', 'nothing', 'cache_bytes or capacity');
      if (size.$case === 'capacity') return { t: 'setCapacity', capacity: within('set_cache.capacity', size.value, 1, MOST_EXPERTS) };
      return { t: 'setCacheBytes', cacheBytes: bytes('set_cache.cache_bytes', size.value, 1n) };
    }
    case 'setTracing': return { t: 'setTracing', traceRatio: share('set_tracing.trace_ratio', change.value.traceRatio) };
    case 'setRouterSampling': {
      const { sampling } = change.value;
      if (!sampling) return { t: 'setSampling', sampling: null };
      return { t: 'setSampling', sampling: {
        windowTokens: within('set_router_sampling.sampling.window_tokens', sampling.windowTokens, 1, MOST_WINDOW_TOKENS),
        bytesPerHour: bytes('set_router_sampling.sampling.bytes_per_hour', sampling.bytesPerHour, 1n),
        ...(sampling.bytesPerDay !== undefined ? { bytesPerDay: bytes('set_router_sampling.sampling.bytes_per_day', sampling.bytesPerDay, 1n) } : {}),
      } };
    }
  }
}

function checkVersion(field: string, version: string): string {
  try {
    return parseVersion(version).text;
  } catch {
    throw new InvalidRequestError(field, version, 'a version such as 0.2.0');
  }
}

const EVICTIONS: Partial<Record<Eviction, EvictionPolicy>> = {
  [Eviction.EVICTION_LRU]: 'lru', [Eviction.EVICTION_LFU]: 'lfu', [Eviction.EVICTION_LFRU]: 'lfru', [Eviction.EVICTION_ADAPTIVE]: 'adaptive',
};

function checkEviction(eviction: Eviction, halfLifeTokens: number | undefined): Change {
  const policy = EVICTIONS[eviction];
  if (!policy) throw new InvalidRequestError('set_eviction.eviction', eviction, 'a policy of this coordinator: LRU, LFU, LFRU or ADAPTIVE');
  if (halfLifeTokens === undefined) return { t: 'setEviction', policy, halfLifeTokens: null };
  if (policy !== 'lfu' && policy !== 'lfru') throw new InvalidRequestError('set_eviction.half_life_tokens', halfLifeTokens, `read by ${policy}; leave it out, or choose LFU or LFRU`);
  if (!(halfLifeTokens >= 0 && halfLifeTokens <= MOST_HALF_LIFE)) throw new InvalidRequestError('set_eviction.half_life_tokens', halfLifeTokens, 'a number of tokens; 0: uses do not age');
  return { t: 'setEviction', policy, halfLifeTokens };
}

export function checkMeasure(measure: Measure | undefined): Measure {
  if (!measure) throw new InvalidRequestError('measure', 'nothing', 'what to measure');
  const { prompts, tokensPerPrompt, text, textTokens, context, temperature } = measure;
  if (prompts.length === 0 && text === '') throw new InvalidRequestError('measure', 'neither prompts nor text', 'something to measure');
  if (prompts.length > MOST_PROMPTS) throw new InvalidRequestError('measure.prompts', `${prompts.length} prompts`, `at most ${MOST_PROMPTS}`);
  for (const [at, prompt] of prompts.entries()) {
    if (prompt.length === 0 || prompt.length > MOST_PROMPT_CHARACTERS) throw new InvalidRequestError(`measure.prompts[${at}]`, `${prompt.length} characters`, `from 1 to ${MOST_PROMPT_CHARACTERS}`);
  }
  if (!(temperature >= 0 && temperature <= 2)) throw new InvalidRequestError('measure.temperature', temperature, 'a number from 0 to 2');
  if (prompts.length > 0) within('measure.tokens_per_prompt', tokensPerPrompt, 1, MOST_TASK_TOKENS);
  if (text !== '') {
    within('measure.context', context, 1, MOST_TASK_TOKENS);
    within('measure.text_tokens', textTokens, 1, MOST_TASK_TOKENS);
    if (textTokens % context !== 0) throw new InvalidRequestError('measure.text_tokens', textTokens, `a multiple of context (${context})`);
  }
  return measure;
}

export function checkProposal(proposal: Proposal): Proposal {
  const field = `proposals[${proposal.deviceId.slice(0, 64)}]`;
  checkId('proposals.device_id', proposal.deviceId);
  for (const name of ['predictedMissRate', 'baselineMissRate', 'predictedCrossEntropyLoss'] as const) finite(`${field}.${name}`, proposal[name]);
  if (!proposal.proposed) return proposal;
  checkDigest(`${field}.model_hash`, proposal.modelHash);
  share(`${field}.lambda`, proposal.lambda);
  within(`${field}.top_j`, proposal.topJ, proposal.routing === Routing.ROUTING_PRUNED ? 1 : 0, MOST_EXPERTS);
  checkBend(field, proposal);
  for (const [layer, capacity] of proposal.capacities.entries()) within(`${field}.capacities[${layer}]`, capacity, 1, MOST_EXPERTS);
  return proposal;
}

/** Each routing with what it reads. */
function checkBend(field: string, { routing, lambda, maxRank, massThreshold }: Proposal): void {
  switch (routing) {
    case Routing.ROUTING_UNSPECIFIED: case Routing.ROUTING_CACHE_PRIOR: return;
    case Routing.ROUTING_MAX_RANK: within(`${field}.max_rank`, maxRank ?? 0, 1, MOST_EXPERTS); break;
    case Routing.ROUTING_CUMULATIVE_THRESHOLD: share(`${field}.mass_threshold`, massThreshold ?? Number.NaN); break;
    case Routing.ROUTING_PRUNED: break;
    default: throw new InvalidRequestError(`${field}.routing`, routing, 'a routing of this coordinator: CACHE_PRIOR, MAX_RANK, CUMULATIVE_THRESHOLD or PRUNED');
  }
  if (lambda !== 0) throw new InvalidRequestError(`${field}.lambda`, lambda, `0 beside ${Routing[routing]}, which does not read it`);
}

export function checkSurface(surface: QualitySurface | undefined): QualitySurface {
  if (!surface) throw new InvalidRequestError('surface', 'nothing', 'a quality surface');
  checkDigest('surface.model_hash', surface.modelHash);
  checkDigest('surface.text_hash', surface.textHash);
  finite('surface.baseline_cross_entropy', surface.baselineCrossEntropy);
  for (const [at, nats] of surface.baselineWindows.entries()) finite(`surface.baseline_windows[${at}]`, nats);
  if (surface.points.length > MOST_POINTS) throw new InvalidRequestError('surface.points', `${surface.points.length} points`, `at most ${MOST_POINTS}`);
  for (const [at, point] of surface.points.entries()) {
    share(`surface.points[${at}].lambda`, point.lambda);
    for (const name of ['crossEntropyLoss', 'crossEntropyLossStderr', 'missRate', 'swapRate', 'massLost'] as const) finite(`surface.points[${at}].${name}`, point[name]);
    for (const [layer, rate] of point.layerMissRates.entries()) share(`surface.points[${at}].layer_miss_rates[${layer}]`, rate);
  }
  return surface;
}
