/**
 * One look at a device: what its newest frame adds to what is known of it. A frame that cannot be believed adds nothing
 * and puts the device into quarantine, out of which a few sound windows in a row bring it. Evidence belongs to a model:
 * with another one loaded the learner begins anew.
 */
import { type Device, type DeviceKnowledge, DriftKnowledge, Routing } from '@moefleet/proto';
import { withWindow } from './drift/drift-sight';
import { evidenceOf, emptyKnowledge, isRunning, memoryMessage, memoryOf, outcomeMessages, type OutcomeRecord, outcomesOf, priorOf, speedMessage } from './knowledge';
import { bytesOfCapacities, type ModelShape, observe, observeMemory, posterior, sameSetting, type Setting, settingOfFields, type TelemetryWindow, windowBetween } from './model';

/** Sound windows in a row after which a device is believed again. */
const SOUND_AGAIN = 3;
/** How fast what a setting was seen to do follows what is seen. */
const OBSERVED_RATE = 0.3;
const PRESSURE_FIELDS = ['cacheShrinks', 'pressureEvictions'] as const;

export function shapeOf(device: Device): ModelShape | null {
  const model = device.info?.model;
  if (!model?.hash || model.expertBytes.length !== model.moeLayers.length || model.experts < 1 || model.topK < 1) return null;
  return { experts: model.experts, topK: model.topK, expertBytes: model.expertBytes.map(Number) };
}

/** `known` null: nothing is. The same object where there is nothing new. */
export function lookAt(device: Device, known: DeviceKnowledge | null, nowMs: number): DeviceKnowledge {
  const modelHash = device.info?.model?.hash ?? '';
  const deviceClass = device.labels['class'] ?? '';
  const shape = shapeOf(device);
  const before = known?.modelHash === modelHash ? { ...known, deviceClass } : { ...emptyKnowledge(device.id, modelHash, deviceClass), drift: anotherModel(known?.modelHash) };
  const frame = device.telemetry;
  if (!shape || !frame) return before;
  const sameBoot = before.bootId === device.bootId;
  if (sameBoot && before.frame && before.frame.sequence === frame.sequence) return before;

  const last = sameBoot ? before.frame : undefined;
  const appliedGeneration = device.reported?.appliedGeneration ?? 0n;
  const outcome = windowBetween(last, frame, shape, leastSlots(device, before.appliedGeneration === appliedGeneration));
  if (outcome.t === 'quarantine') return quarantined(before, outcome.reason, nowMs);
  // A frame without layers is nothing to compare the next one with.
  const kept = frame.layers.length > 0 || !sameBoot ? frame : before.frame;
  const next = { ...before, bootId: device.bootId, appliedGeneration, frame: kept, quarantine: outcome.t === 'nothing' ? calmer(before.quarantine) : before.quarantine, memory: memoryMessage(memoryAfter(device, before, last, shape, nowMs)) };
  const setting = settingOf(device, shape);
  if (outcome.t !== 'window' || !setting || outcome.window.layers.some(({ capacity }, layer) => capacity !== setting.capacities[layer])) return next;
  // A window that saw two settings tells of neither.
  if (!sameBoot || before.appliedGeneration !== appliedGeneration) return next;
  return learnt(next, setting, outcome.window, shape, nowMs);
}

/** How many of its top-K experts a token may have used, if it was not all of them: `pruned` leaves some out, and a window in which the setting changed may have begun with it. */
function leastSlots(device: Device, sameSettingThroughout: boolean): number | undefined {
  const effective = device.reported?.effective;
  if (!sameSettingThroughout) return 0;
  return effective?.routing === Routing.ROUTING_PRUNED ? effective.topJ : undefined;
}

/** What is in force, after the device's own limits; null where it is not one strength for all layers. */
export function settingOf(device: Device, shape: ModelShape): Setting | null {
  const effective = device.reported?.effective;
  if (!effective || effective.lambdas.length > 0 || effective.topJs.length > 0 || effective.firstBiasedLayer > 0) return null;
  return settingOfFields(effective, effective.capacities, shape);
}

/** One sound look more; undefined: believed again. A device that idles contradicts itself no more than one that works. */
function calmer(quarantine: DeviceKnowledge['quarantine']): DeviceKnowledge['quarantine'] {
  return quarantine && quarantine.sound + 1 < SOUND_AGAIN ? { ...quarantine, sound: quarantine.sound + 1 } : undefined;
}

function quarantined(before: DeviceKnowledge, reason: string, nowMs: number): DeviceKnowledge {
  const { quarantine } = before;
  return { ...before, quarantine: { reason, sinceMs: quarantine?.sinceMs ?? BigInt(nowMs), windows: (quarantine?.windows ?? 0n) + 1n, sound: 0 } };
}

function anotherModel(earlierModel: string | undefined): DriftKnowledge | undefined {
  return earlierModel ? DriftKnowledge.fromPartial({ earlierModel }) : undefined;
}

function learnt(next: DeviceKnowledge, setting: Setting, window: TelemetryWindow, shape: ModelShape, nowMs: number): DeviceKnowledge {
  const quarantine = calmer(next.quarantine);
  if (quarantine) return { ...next, quarantine };
  const prior = priorOf(next.speed);
  const before = evidenceOf(next.speed);
  const evidence = observe(before, window, prior);
  return {
    ...next, quarantine: undefined,
    speed: speedMessage(evidence, prior, posterior(evidence, prior), { readNs: window.readNs, readBytes: window.readBytes }),
    drift: withWindow(next.drift, isRunning(outcomesOf(next), setting), window),
    outcomes: outcomeMessages(outcomesAfter(next, setting, window, shape, evidence.drifts > before.drifts, nowMs)),
  };
}

function outcomesAfter(next: DeviceKnowledge, setting: Setting, window: TelemetryWindow, { topK }: ModelShape, drifted: boolean, nowMs: number): OutcomeRecord[] {
  const outcomes = outcomesOf(next);
  const chosen = next.choice?.chosen;
  const predicted = chosen && chosen.tokensPerSecond > 0 && sameSetting(chosen, setting) ? { tokensPerSecond: chosen.tokensPerSecond, sd: chosen.tokensPerSecondSd } : null;
  const fresh: OutcomeRecord = { setting, sinceMs: nowMs, predicted, observedTokensPerSecond: null, windows: 0, slots: 0, misses: 0, drifted: false, undone: false, massLost: 0 };
  const running = isRunning(outcomes, setting) ? outcomes.pop()! : fresh;
  const seen = window.tokens / (window.decodeNs / 1e9);
  const follow = (was: number | null, is: number) => (was === null || running.windows === 0 ? is : was + OBSERVED_RATE * (is - was));
  const misses = window.layers.reduce((sum, layer) => sum + layer.misses, 0);
  return [...outcomes, {
    ...running, observedTokensPerSecond: follow(running.observedTokensPerSecond, seen), massLost: follow(running.massLost, window.massLost), windows: running.windows + 1,
    misses: running.misses + misses, slots: running.slots + window.tokens * topK * window.layers.length, drifted: (running.drifted ?? false) || drifted,
  }];
}

function memoryAfter(device: Device, before: DeviceKnowledge, last: DeviceKnowledge['frame'], shape: ModelShape, nowMs: number) {
  const frame = device.telemetry!;
  const limits = device.info?.limits;
  const held = limits && limits.maxCapacities.length > 0 ? bytesOfCapacities(shape, limits.maxCapacities) : 0;
  const grown = (name: typeof PRESSURE_FIELDS[number]) => (last && frame[name] > last[name] ? Number(frame[name] - last[name]) : 0);
  return observeMemory(memoryOf(before), {
    limitBytes: Math.max(Number(limits?.maxCacheBytes ?? 0n) || held, 1),
    floorBytes: bytesOfCapacities(shape, shape.expertBytes.map(() => shape.topK)),
    inForceBytes: Number(device.reported?.effective?.cacheBytes ?? 0n),
    cutBytes: frame.cacheLimitBytes === undefined ? null : Number(frame.cacheLimitBytes),
    newShrinks: PRESSURE_FIELDS.reduce((sum, name) => sum + grown(name), 0),
    nowMs,
  });
}
