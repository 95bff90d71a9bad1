/**
 * Drift of one device, as it is kept with what is known of it: what telemetry windows and reports of expert use add, what
 * follows from it, and a λ that is held back. A hold ends when the device loses no more than the texts do, when the texts,
 * measured anew, are found to lose as much, or after HOLD_MS, to be seen again if it must.
 */
import { type Device, DriftKnowledge, type DeviceKnowledge, type LambdaHold, Routing, ValueSource_Layer } from '@moefleet/proto';
import { outcomesOf } from '../knowledge';
import { type QualitySurface, sameSetting, type Setting, type TelemetryWindow } from '../model';
import { assessDrift, type DriftFinding, isWithin } from './assess-drift';
import type { UseBits } from './use-bits';

const HALF_LIFE_TOKENS = 2048;
const MOST_WINDOWS = 12;
const HOLD_MS = 6 * 3_600_000;
/** Under a held λ: seen over fewer, a device does not lose less yet. */
const RELEASE_TOKENS = 1024;

/** `before` with a window more; `same`: under the setting that it is of. Of another setting it begins anew, and a hold stays. */
export function withWindow(before: DriftKnowledge | undefined, same: boolean, { tokens, massLost, layers }: TelemetryWindow): DriftKnowledge {
  const drift = before && same ? before : DriftKnowledge.fromPartial({ hold: before?.hold, earlierModel: before?.earlierModel ?? '' });
  const left = drift.tokens * 2 ** (-tokens / HALF_LIFE_TOKENS);
  const sum = (read: (layer: TelemetryWindow['layers'][number]) => number) => BigInt(layers.reduce((total, layer) => total + read(layer), 0));
  const window = { slots: sum(({ hits, misses }) => hits + misses), misses: sum(({ misses }) => misses), swaps: sum(({ swaps }) => swaps) };
  return { ...drift, tokens: left + tokens, massLost: (drift.massLost * left + massLost * tokens) / (left + tokens), windows: [...drift.windows, window].slice(-MOST_WINDOWS) };
}

/** `knowledge.drift` as the surface and the device's uses make it; `bits` undefined: no later report than the one it rests on. */
export function judgeDrift(device: Device, knowledge: DeviceKnowledge, surface: QualitySurface, bits: UseBits | undefined, nowMs: number): DriftKnowledge | undefined {
  const { drift, quarantine } = knowledge;
  if (!drift || quarantine) return drift;
  const setting = outcomesOf(knowledge).at(-1)?.setting;
  if (!setting) return judged(drift, finding(drift, null, knowledge, surface), nowMs);
  const measured = surface.predict(setting);
  const seen: DriftKnowledge = {
    ...drift, ...(bits && bits.lambda === toldLambda(setting) && bits.topJ === setting.topJ ? bitsOf(bits) : {}),
    leastMeasured: measured?.leastMassLost, mostMeasured: measured?.mostMassLost, earlierModel: runsOurs(knowledge, setting) ? '' : drift.earlierModel,
  };
  const kept = seen.hold && !holdsStill(seen, setting, surface, nowMs) ? released(seen) : seen;
  const found = finding(kept, setting, knowledge, surface);
  const onItsWay = kept.hold && sameSetting(seenUnder(kept.hold), setting);
  return judged(onItsWay ? kept : { ...kept, hold: holdOf(kept, setting, found, device, nowMs) ?? kept.hold }, found, nowMs);
}

/** As a device tells it. */
function toldLambda({ routing, lambda }: Setting): number {
  return routing === Routing.ROUTING_CACHE_PRIOR ? lambda : 0;
}

function bitsOf({ workload, bent, entropyChange, timeMs }: UseBits): Partial<DriftKnowledge> {
  return { workloadBits: [...workload], lambdaBits: [...bent], entropyChange: entropyChange ?? undefined, useMs: timeMs };
}

function finding(drift: DriftKnowledge, setting: Setting | null, { modelHash }: DeviceKnowledge, surface: QualitySurface): DriftFinding {
  const { hold, tokens, massLost, windows } = drift;
  return assessDrift({
    routing: setting?.routing ?? Routing.ROUTING_CACHE_PRIOR, lambda: setting?.lambda ?? 0, modelHash, chosenFor: drift.earlierModel || modelHash, workloadBits: drift.workloadBits, lambdaBits: drift.lambdaBits, entropyChange: drift.entropyChange ?? null,
    windows: windows.map(({ slots, misses, swaps }) => ({ slots: Number(slots), misses: Number(misses), swaps: Number(swaps) })),
    massLost: setting ? { mean: massLost, tokens } : null, massLimit: hold?.mostMassLost ?? null,
    measuredMassLost: (lambda) => {
      const quality = setting && surface.predict({ ...setting, lambda });
      return quality ? { least: quality.leastMassLost, most: quality.mostMassLost } : null;
    },
  });
}

function judged(drift: DriftKnowledge, { causes, reason }: DriftFinding, nowMs: number): DriftKnowledge {
  const since = causes.length === 0 ? 0n : causes.join() === drift.causes.join() ? drift.sinceMs : BigInt(nowMs);
  return { ...drift, causes: [...causes], reason, sinceMs: since };
}

function holdOf({ massLost, mostMeasured, hold }: DriftKnowledge, setting: Setting, { backOffTo, backOffReason, causes }: DriftFinding, device: Device, nowMs: number): LambdaHold | undefined {
  if (backOffTo === null || causes.includes('model') || mostMeasured === undefined || !isLearners(device)) return undefined;
  return {
    lambda: backOffTo, mostMassLost: hold?.mostMassLost ?? mostMeasured, factor: massLost / Math.max(mostMeasured, 1e-9), seenRouting: setting.routing, seenLambda: setting.lambda, seenTopJ: setting.topJ,
    seenCapacities: [...setting.capacities], sinceMs: BigInt(nowMs), untilMs: BigInt(nowMs + HOLD_MS), reason: backOffReason, measuredAnew: false,
  };
}

function holdsStill({ hold, tokens, massLost, mostMeasured }: DriftKnowledge, setting: Setting, surface: QualitySurface, nowMs: number): boolean {
  if (!hold || nowMs >= Number(hold.untilMs)) return false;
  if (hold.measuredAnew) {
    const now = surface.predict(seenUnder(hold));
    if (now && isWithin({ mean: hold.factor * hold.mostMassLost, tokens: Infinity }, now.mostMassLost)) return false;
  }
  const loses = setting.lambda > 0 && setting.lambda <= hold.lambda && tokens >= RELEASE_TOKENS && mostMeasured !== undefined;
  return !(loses && massLost <= mostMeasured);
}

/** What was seen under the held λ counts no more: it would be held against that λ's own, smaller, loss at once. */
function released(drift: DriftKnowledge): DriftKnowledge {
  return { ...drift, hold: undefined, tokens: 0, massLost: 0 };
}

export function seenUnder(hold: LambdaHold): Setting {
  return { routing: hold.seenRouting || Routing.ROUTING_CACHE_PRIOR, lambda: hold.seenLambda, topJ: hold.seenTopJ, capacities: hold.seenCapacities };
}

function isLearners(device: Device): boolean {
  return device.sources.some(({ field, layer }) => field === 'lambda' && layer === ValueSource_Layer.LAYER_LEARNER);
}

/** What was chosen for this model is in force. */
function runsOurs({ choice }: DeviceKnowledge, setting: Setting): boolean {
  return choice?.chosen !== undefined && sameSetting(choice.chosen, setting);
}
