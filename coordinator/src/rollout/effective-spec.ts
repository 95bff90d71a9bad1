/**
 * Which value a device runs with: a pure function of the layers and the device. The kill switch wins over all that is
 * said of routing. Then, per field, the first that is set: pin on the device, on a group it belongs to (of several the
 * newest), on the fleet; the learner's value, if it was made for the model the device runs; the default (lambda 0, as
 * much cache as the device allows). The value of a rollout under way stands in for its layer's on devices that carry
 * its mark, and on no other.
 *
 * The routing method, lambda, topJ and what else decides which experts are chosen trade together, so all come from one
 * place: under a pinned lambda without a topJ the agent's default topJ holds, never one that the learner chose for
 * another lambda. Routing, eviction and capacities belong to a model: a pin of them holds for the models its targets
 * ran when it was set, and the spec carries the hash of the device's model, so that the agent falls back to lambda 0
 * should it ever load another.
 */
import { type DeviceSpec, Eviction, type ModelFile, type ModelState, type Proposal, Routing, routingMethod, ROUTINGS, type ValueSource, ValueSource_Layer as Layer } from '@moefleet/proto';
import { selectorMatches } from '@moefleet/runtime';
import type { SharedPins } from '../registry/pin-store';
import { type CachePin, type EvictionPolicy, type ModelChoice, type PinByField, type PinField, type PinSet, type RoutingChoice } from '../registry/pin';
import type { StagedMarks } from '../registry/staged-value';
import { layersWithStaged } from './staged-layers';

export interface SpecInputs {
  readonly labels: Readonly<Record<string, string>>;
  /** The last model it had loaded; undefined before the first. */
  readonly model: ModelState | undefined;
  readonly devicePins: PinSet;
  readonly shared: Pick<SharedPins, 'fleet' | 'groups'> & Partial<SharedPins>;
  /** Rollouts under way whose value counts for it. */
  readonly marks?: StagedMarks;
  /** The learner's value for `model`. */
  readonly learned: Proposal | undefined;
}

export interface EffectiveSpecResult {
  readonly spec: DeviceSpec;
  readonly sources: ValueSource[];
}

interface Chosen<F extends PinField> { pin: PinByField[F]; layer: Layer; detail: string; expiresMs: bigint | undefined }

const EVICTION: Record<EvictionPolicy, Eviction> = {
  lru: Eviction.EVICTION_LRU, lfu: Eviction.EVICTION_LFU, lfru: Eviction.EVICTION_LFRU, adaptive: Eviction.EVICTION_ADAPTIVE,
};

export function effectiveSpec(given: SpecInputs): EffectiveSpecResult {
  const inputs = layersWithStaged(given);
  const routing = routingValue(inputs);
  const cache = cacheValue(inputs);
  const eviction = choosePin('eviction', inputs);
  const tracing = choosePin('tracing', inputs);
  const sampling = choosePin('sampling', inputs);
  const agent = choosePin('agent', inputs);
  const model = choosePin('model', inputs);
  const bound = (routing.choice !== undefined && !inputs.shared.kill) || eviction !== undefined || cache.cache?.$case === 'capacities';
  return {
    spec: {
      ...routingFields(routing.choice),
      cache: cache.cache,
      modelHash: bound ? inputs.model?.hash ?? '' : '',
      traceRatio: tracing?.pin.traceRatio,
      routerSampling: sampling?.pin.sampling
        ? { windowTokens: sampling.pin.sampling.windowTokens, bytesPerHour: BigInt(sampling.pin.sampling.bytesPerHour), bytesPerDay: sampling.pin.sampling.bytesPerDay === undefined ? undefined : BigInt(sampling.pin.sampling.bytesPerDay) }
        : undefined,
      eviction: eviction ? EVICTION[eviction.pin.policy] : Eviction.EVICTION_UNSPECIFIED,
      evictionHalfLifeTokens: eviction?.pin.halfLifeTokens ?? undefined,
      agent: agent ? { version: agent.pin.version, allowDowngrade: agent.pin.allowDowngrade } : undefined,
      model: model ? modelFile(model.pin) : undefined,
    },
    sources: [
      ...routing.sources,
      cache.source,
      eviction ? source('eviction', eviction) : defaultSource('eviction'),
      tracing ? source('trace_ratio', tracing) : defaultSource('trace_ratio'),
      sampling ? source('router_sampling', sampling) : defaultSource('router_sampling'),
      agent ? source('agent', agent) : defaultSource('agent', 'the release that was installed'),
      model ? source('model', model) : defaultSource('model', 'the one that it was set up with'),
    ],
  };
}

function modelFile({ name, manifestSha256, bytes, bytesPerSecond, quietHours }: ModelChoice): ModelFile {
  return { name, manifestSha256, bytes: BigInt(bytes), bytesPerSecond: bytesPerSecond === undefined ? undefined : BigInt(bytesPerSecond), quietHours };
}

function routingFields(choice: RoutingChoice | undefined) {
  return {
    routing: choice ? ROUTINGS[choice.method ?? 'cache_prior'] : Routing.ROUTING_UNSPECIFIED,
    lambda: choice?.lambda, topJ: choice?.topJ ?? undefined, lambdas: [...choice?.lambdas ?? []], topJs: [...choice?.topJs ?? []],
    maxRank: choice?.maxRank, massThreshold: choice?.massThreshold, firstBiasedLayer: choice?.firstBiasedLayer, biasPrefill: choice?.biasPrefill,
  };
}

/** How a layer is named to an operator: "fleet pin", "group pin class=phone". */
export function layerText(found: ValueSource): string {
  const names: Partial<Record<Layer, string>> = {
    [Layer.LAYER_DEVICE_PIN]: 'device pin', [Layer.LAYER_GROUP_PIN]: `group pin ${found.detail}`,
    [Layer.LAYER_FLEET_PIN]: 'fleet pin', [Layer.LAYER_LEARNER]: 'learner', [Layer.LAYER_KILL_SWITCH]: 'kill switch',
  };
  return names[found.layer] ?? 'default';
}

function routingValue(inputs: SpecInputs): { choice?: RoutingChoice; sources: ValueSource[] } {
  const { kill } = inputs.shared;
  if (kill) {
    const from = { layer: Layer.LAYER_KILL_SWITCH, detail: kill.why };
    return { choice: { method: 'original', lambda: 0, topJ: null }, sources: [source('lambda', from), defaultSource('top_j'), source('routing', from)] };
  }
  const pinned = choosePin('lambda', inputs);
  if (pinned) {
    const { pin } = pinned;
    const topJSource = pin.topJ === null && !pin.topJs ? defaultSource('top_j', 'lambda is pinned without it') : source('top_j', pinned);
    return { choice: pin, sources: [source('lambda', pinned), topJSource, source('routing', pinned)] };
  }
  const learned = inputs.learned;
  if (learned && learned.modelHash === inputs.model?.hash) {
    const from = { layer: Layer.LAYER_LEARNER, detail: learned.reason };
    return { choice: learnedChoice(learned), sources: [source('lambda', from), source('top_j', from), source('routing', from)] };
  }
  const elsewhere = choosePin('lambda', { ...inputs, model: undefined });
  const detail = elsewhere ? `the ${layerText(source('lambda', elsewhere))} was set for another model` : '';
  return { sources: [defaultSource('lambda', detail), defaultSource('top_j'), defaultSource('routing')] };
}

/** Of a routing that this release does not know nothing is bent: its lambda is 0. */
export function learnedChoice({ routing, lambda, topJ, maxRank, massThreshold }: Proposal): RoutingChoice {
  const method = routingMethod(routing);
  return {
    lambda, topJ, ...(method && method !== 'cache_prior' ? { method } : {}),
    ...(maxRank === undefined ? {} : { maxRank }), ...(massThreshold === undefined ? {} : { massThreshold }),
  };
}

function cacheValue(inputs: SpecInputs): { cache: DeviceSpec['cache']; source: ValueSource } {
  const pinned = choosePin('cache', inputs);
  const pinnedCache = pinned && sizeOf(pinned.pin, inputs.model);
  if (pinnedCache) return { cache: pinnedCache, source: source(fieldOf(pinnedCache), pinned) };
  const learned = inputs.learned;
  if (learned && learned.modelHash === inputs.model?.hash && learned.capacities.length > 0) {
    const from = { layer: Layer.LAYER_LEARNER, detail: learned.reason };
    return { cache: { $case: 'capacities', value: { experts: learned.capacities } }, source: source('capacities', from) };
  }
  return { cache: undefined, source: defaultSource('cache_bytes', 'as much as the device allows') };
}

/** undefined while the number of layers is not known. */
function sizeOf(pin: CachePin, model: ModelState | undefined): DeviceSpec['cache'] {
  const { size } = pin;
  if (size.t === 'bytes') return { $case: 'cacheBytes', value: BigInt(size.cacheBytes) };
  const layers = model?.moeLayers.length ?? 0;
  return layers > 0 ? { $case: 'capacities', value: { experts: new Array<number>(layers).fill(size.capacity) } } : undefined;
}

function fieldOf(cache: NonNullable<DeviceSpec['cache']>): string {
  return cache.$case === 'capacities' ? 'capacities' : 'cache_bytes';
}

function choosePin<F extends PinField>(field: F, inputs: SpecInputs): Chosen<F> | undefined {
  const candidates = [
    { pin: inputs.devicePins[field], layer: Layer.LAYER_DEVICE_PIN, detail: '' },
    ...inputs.shared.groups
      .filter((group) => selectorMatches(group.matches, inputs.labels))
      .map((group) => ({ pin: group.pins[field], layer: Layer.LAYER_GROUP_PIN, detail: group.selector }))
      .sort((a, b) => (b.pin?.order ?? -1) - (a.pin?.order ?? -1)),
    { pin: inputs.shared.fleet[field], layer: Layer.LAYER_FLEET_PIN, detail: '' },
  ];
  const found = candidates.find((candidate) => candidate.pin && holdsFor(candidate.pin, inputs.model));
  return found && { pin: found.pin as PinByField[F], layer: found.layer, detail: found.detail || found.pin!.why, expiresMs: endOf(found.pin!) };
}

function holdsFor(pin: PinByField[PinField], model: ModelState | undefined): boolean {
  if (!('modelHashes' in pin) || ('size' in pin && pin.size.t === 'bytes')) return true;
  return pin.modelHashes.length === 0 || !model || pin.modelHashes.includes(model.hash);
}

/** undefined: it stays. */
export function endOf({ expiresMs }: PinByField[PinField]): bigint | undefined {
  return expiresMs === undefined ? undefined : BigInt(expiresMs);
}

function source(field: string, from: { layer: Layer; detail: string; expiresMs?: bigint | undefined }): ValueSource {
  return { field, layer: from.layer, detail: from.detail, expiresMs: from.expiresMs };
}

function defaultSource(field: string, detail = ''): ValueSource {
  return { field, layer: Layer.LAYER_DEFAULT, detail };
}
