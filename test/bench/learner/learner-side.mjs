/**
 * The learner as it is, fed by simulated devices: what each tells in telemetry frames goes through its own checks into its own
 * models, and its own decision sets what the device runs next. Nothing of a device is known here but what it says. Two things
 * that the learner does are left out: it splits the cache over the layers, and measures a setting before it goes out where it
 * was read off between points; here layers are alike, and the surface is what was recorded.
 */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { root } from '../shared.mjs';

const require = createRequire(import.meta.url);
const dist = join(root, 'services', 'learner', 'dist');
const { lookAtAll, proposeAll, withPriors } = require(join(dist, 'fleet-learning'));
const { QualitySurface, within } = require(join(dist, 'model'));
const { Device, Routing, TelemetryFrame, ValueSource_Layer } = require('@moefleet/proto');

export { within };

export const BUDGET = { meanNats: Math.log(1.01), worstNats: Math.log(1.02) };
export const ROUTING = Routing.ROUTING_CACHE_PRIOR;
/** Between two proposals. */
const ROUND_MS = 600_000;

export function surfaceOf(recording, shape) {
  return new QualitySurface(recording.domains.map((domain) => ({
    domain,
    points: recording.points.filter((point) => point.set === 'surface' && point.domain === domain).map((point) => ({
      routing: ROUTING, lambda: point.lambda, topJ: point.topJ, capacities: new Array(recording.layers).fill(point.capacity), ...recording.loss(point),
      missRate: point.misses.reduce((sum, misses) => sum + misses, 0) / (point.misses.length * recording.context * recording.layers * recording.topK),
      layerMissRates: point.layerMissRates, massLost: point.massLost,
    })),
  })), shape);
}

export class LearnerSide {
  constructor(surface, shape, fleet) {
    Object.assign(this, { surface, shape });
    this.subject = {
      modelHash: 'ab'.repeat(32), experts: shape.experts, topK: shape.topK, moeLayers: shape.expertBytes.length, expertBytes: shape.expertBytes, engineVersion: 'simulated',
      domains: surface.domains.map((domain) => ({ domain, textHash: domain })),
    };
    this.fleet = new Map(fleet.map((device) => [device.id, { device, message: this.messageOf(device), generation: 0n, setting: null }]));
    this.known = new Map();
    this.nowMs = 0;
  }

  messageOf({ id, class: name, capacity, maxLambda, expertBytes }) {
    const { shape, subject } = this;
    const capacities = shape.expertBytes.map(() => Math.min(capacity, shape.experts));
    const cacheBytes = BigInt(capacities.reduce((sum, one) => sum + one, 0) * expertBytes);
    return Device.fromPartial({
      id, online: true, bootId: `boot-${id}`, labels: { class: name },
      info: {
        model: { hash: subject.modelHash, experts: shape.experts, topK: shape.topK, moeLayers: shape.expertBytes.map((_, layer) => layer), expertBytes: shape.expertBytes.map(BigInt) },
        limits: { maxLambda, maxCapacities: capacities, maxCacheBytes: cacheBytes },
      },
      reported: { appliedGeneration: 0n, effective: { routing: ROUTING, lambda: 0, topJ: 2, capacities, cacheBytes } },
    });
  }

  /** What the device runs: the learner's value, λ 0 with all of its cache before there is one. */
  setting(id) {
    const { effective } = this.fleet.get(id).message.reported;
    return { capacity: effective.capacities[0], lambda: effective.lambda, topJ: effective.topJ };
  }

  /** A stretch of decoding, told by a frame as the device tells it, and looked at. */
  hear(id, window) {
    const state = this.fleet.get(id);
    state.message = { ...state.message, telemetry: nextFrame(state, window, this.shape) };
    const { learnt } = lookAtAll([state.message], this.known, this.subject, this.nowMs);
    for (const { device, knowledge } of learnt) this.known.set(device.id, knowledge);
  }

  quarantined(id) {
    return this.known.get(id)?.quarantine !== undefined;
  }

  /** One proposal for each device, brought into force at once. */
  propose() {
    this.nowMs += ROUND_MS;
    const devices = [...this.fleet.values()].map(({ message }) => message);
    const { learnt, priors, unclear } = withPriors(lookAtAll(devices, this.known, this.subject, this.nowMs).learnt);
    const { proposals, knowledge } = proposeAll(learnt, { surface: this.surface, subject: this.subject, priors, unclear, levels: [], budget: BUDGET, budgetRules: [], nowMs: this.nowMs });
    for (const one of knowledge) this.known.set(one.deviceId, one);
    for (const proposal of proposals) if (proposal.proposed) this.apply(proposal);
  }

  apply({ deviceId, lambda, topJ, capacities }) {
    const state = this.fleet.get(deviceId);
    const { message } = state;
    const { effective } = message.reported;
    if (message.sources.length > 0 && effective.lambda === lambda && effective.topJ === topJ) return;
    state.generation += 1n;
    state.message = {
      ...message, sources: [{ field: 'lambda', layer: ValueSource_Layer.LAYER_LEARNER, target: '' }],
      desired: { ...(message.desired ?? {}), lambda, topJ, routing: ROUTING, cache: { $case: 'capacities', value: { experts: capacities } } },
      reported: { ...message.reported, appliedGeneration: state.generation, effective: { ...effective, lambda, topJ, capacities } },
    };
  }
}

/** Totals since boot, as the device tells them. One that lies tells a third of the time, or, one in ten, of the misses. */
function nextFrame({ device, message }, { tokens, ms, rates, computeMs }, shape) {
  const [timeTold, missesTold] = !device.lies ? [1, 1] : device.id.endsWith('1') ? [1, 1 / 3] : [1 / 3, 1];
  const before = message.telemetry ?? TelemetryFrame.fromPartial({ layers: rates.map((_, layer) => ({ layer })) });
  const misses = rates.map((rate) => Math.round(rate * missesTold * tokens * shape.topK));
  const bytes = misses.reduce((sum, count, layer) => sum + count * shape.expertBytes[layer], 0);
  const slots = tokens * shape.topK;
  return {
    ...before, sequence: before.sequence + 1n, timeMs: before.timeMs + BigInt(Math.round(ms * tokens)), decodeTokens: before.decodeTokens + BigInt(tokens),
    decodeNs: before.decodeNs + BigInt(Math.round(ms * tokens * 1e6 * timeTold)), stallNs: before.stallNs + BigInt(Math.round(Math.max(0, ms - computeMs) * tokens * 1e6 * timeTold)),
    flashBytes: before.flashBytes + BigInt(bytes), flashReads: before.flashReads + BigInt(misses.reduce((sum, count) => sum + count * 3, 0)),
    layers: before.layers.map((was, layer) => ({
      ...was, capacity: message.reported.effective.capacities[layer], hits: was.hits + BigInt(slots - misses[layer]), misses: was.misses + BigInt(misses[layer]), events: was.events + BigInt(tokens),
    })),
  };
}
