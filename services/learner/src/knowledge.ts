/** What is known of a device as the model works with it, from and to the message that is kept with the coordinator. */
import { DeviceKnowledge, SpeedKnowledge } from '@moefleet/proto';
import type { MemoryState, Outcome, Setting, SpeedEvidence, SpeedPosterior, SpeedPrior, SpeedTerm } from './model';
import { NO_EVIDENCE, sameSetting, VAGUE_PRIOR } from './model';

const CAUSES: readonly SpeedTerm[] = ['compute', 'reading', 'speed'];
/** Settings remembered per device. */
export const MOST_OUTCOMES = 12;

export interface OutcomeRecord extends Outcome { slots: number; misses: number; massLost: number }

export function emptyKnowledge(deviceId: string, modelHash: string, deviceClass: string): DeviceKnowledge {
  return DeviceKnowledge.fromPartial({ deviceId, modelHash, deviceClass });
}

/** Numbers that no learner of ours writes: the record is not to be gone on from. */
export function isSound(knowledge: DeviceKnowledge): boolean {
  const finite = (value: unknown): boolean => (typeof value === 'number' ? Number.isFinite(value)
    : typeof value !== 'object' || value === null || value instanceof Uint8Array || Object.values(value).every(finite));
  const { speed, memory } = knowledge;
  return finite(knowledge) && (!speed || (speed.information.length === 3 && speed.alarms.length === 6 && speed.noise > 0 && speed.priorTrust > 0 && speed.priorTrust <= 1 && speed.information[0]! >= 0 && speed.information[2]! >= 0)) &&
    (!memory || memory.safeBytes > 0n);
}

export function evidenceOf(speed: SpeedKnowledge | undefined): SpeedEvidence {
  if (!speed) return NO_EVIDENCE;
  const [aa, ab, bb] = speed.information as [number, number, number];
  const alarm = (at: number) => ({ up: speed.alarms[2 * at]!, down: speed.alarms[2 * at + 1]! });
  const cause = CAUSES.find((one) => one === speed.driftCause);
  return {
    information: [aa, ab, bb], weighted: [speed.weighted?.compute ?? 0, speed.weighted?.reading ?? 0], trust: speed.priorTrust, noise: speed.noise,
    windows: Number(speed.windows), tokens: Number(speed.tokens), alarms: { compute: alarm(0), reading: alarm(1), speed: alarm(2) }, drifts: speed.drifts,
    lastDrift: cause ? { cause, slower: speed.driftSlower, window: Number(speed.driftWindow) } : null,
    observed: speed.observedTokensPerSecond > 0 ? { tokensPerSecond: speed.observedTokensPerSecond, missMibPerToken: speed.observedMibPerToken } : null,
  };
}

/** `read` is kept from before where the evidence alone changes. */
export function speedMessage(evidence: SpeedEvidence, prior: SpeedPrior, said: SpeedPosterior, read: { readNs: number; readBytes: number }): SpeedKnowledge {
  const pair = ([compute, reading]: readonly [number, number]) => ({ compute, reading });
  return {
    information: [...evidence.information], weighted: pair(evidence.weighted), priorTrust: evidence.trust, noise: evidence.noise, windows: BigInt(evidence.windows), tokens: BigInt(evidence.tokens),
    alarms: CAUSES.flatMap((cause) => [evidence.alarms[cause].up, evidence.alarms[cause].down]), drifts: evidence.drifts,
    driftCause: evidence.lastDrift?.cause ?? '', driftSlower: evidence.lastDrift?.slower ?? false, driftWindow: BigInt(evidence.lastDrift?.window ?? 0),
    observedTokensPerSecond: evidence.observed?.tokensPerSecond ?? 0, observedMibPerToken: evidence.observed?.missMibPerToken ?? 0,
    priorMean: pair(prior.mean), priorSd: pair(prior.sd), priorDevices: prior.devices,
    mean: pair(said.mean), sd: pair([Math.sqrt(said.covariance[0]), Math.sqrt(said.covariance[2])]), ...read,
  };
}

/** The class's prior as it was when the device was last looked at. */
export function priorOf(speed: SpeedKnowledge | undefined): SpeedPrior {
  if (!speed?.priorMean || !speed.priorSd || !(speed.priorSd.compute > 0) || !(speed.priorSd.reading > 0)) return VAGUE_PRIOR;
  return { mean: [speed.priorMean.compute, speed.priorMean.reading], sd: [speed.priorSd.compute, speed.priorSd.reading], devices: speed.priorDevices };
}

export function memoryOf(knowledge: DeviceKnowledge): MemoryState | null {
  const { memory } = knowledge;
  return memory ? {
    safeBytes: Number(memory.safeBytes), badBytes: memory.badBytes > 0n ? Number(memory.badBytes) : null, badAtMs: Number(memory.badAtMs), sinceMs: Number(memory.sinceMs),
    shortages: memory.shortages,
  } : null;
}

export function memoryMessage(state: MemoryState): NonNullable<DeviceKnowledge['memory']> {
  return {
    safeBytes: BigInt(Math.floor(state.safeBytes)), badBytes: BigInt(Math.floor(state.badBytes ?? 0)), badAtMs: BigInt(state.badAtMs), sinceMs: BigInt(state.sinceMs),
    shortages: state.shortages,
  };
}

export function outcomesOf(knowledge: DeviceKnowledge): OutcomeRecord[] {
  return knowledge.outcomes.map((one) => ({
    setting: { routing: one.routing, lambda: one.lambda, topJ: one.topJ, capacities: one.capacities }, sinceMs: Number(one.sinceMs),
    predicted: one.predictedTokensPerSecond > 0 ? { tokensPerSecond: one.predictedTokensPerSecond, sd: one.predictedTokensPerSecondSd } : null, observedTokensPerSecond: one.observedTokensPerSecond || null,
    windows: Number(one.windows), slots: Number(one.slots), misses: Number(one.misses), drifted: one.drifted, undone: one.undone, massLost: one.massLost,
  }));
}

export function outcomeMessages(outcomes: readonly OutcomeRecord[]): DeviceKnowledge['outcomes'] {
  return outcomes.slice(-MOST_OUTCOMES).map((one) => ({
    ...one.setting, capacities: [...one.setting.capacities], sinceMs: BigInt(one.sinceMs),
    predictedTokensPerSecond: one.predicted?.tokensPerSecond ?? 0, predictedTokensPerSecondSd: one.predicted?.sd ?? 0, observedTokensPerSecond: one.observedTokensPerSecond ?? 0, windows: BigInt(one.windows), slots: BigInt(one.slots), misses: BigInt(one.misses),
    drifted: one.drifted ?? false, undone: one.undone ?? false, massLost: one.massLost,
  }));
}

export function isRunning(outcomes: readonly OutcomeRecord[], setting: Setting): boolean {
  const last = outcomes.at(-1);
  return last !== undefined && sameSetting(last.setting, setting);
}
