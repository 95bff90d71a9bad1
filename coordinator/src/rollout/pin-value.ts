/** The pin that a change sets, without its order. */
import type { ChangeSubject } from '../registry/device-record';
import type { PinByField, PinField } from '../registry/pin';
import type { Change } from './change';

type Unordered<P> = P extends unknown ? Omit<P, 'order'> : never;
export type PinValue = Unordered<PinByField[PinField]>;

/** null: the change clears it. A pin of what belongs to a model remembers those that its targets run. */
export function pinValue(change: Change, why: string, devices: readonly Pick<ChangeSubject, 'model'>[]): PinValue | null {
  const modelHashes = [...new Set(devices.flatMap((device) => device.model?.hash ?? []))].sort();
  const base = { why, ...(change.expiresMs === undefined ? {} : { expiresMs: change.expiresMs }) };
  switch (change.t) {
    case 'clearRouting': case 'clearEviction': case 'clearCache': case 'clearAgent': case 'clearModel': return null;
    case 'setRouting': return { ...base, modelHashes, ...change.routing };
    case 'setEviction': return { ...base, modelHashes, policy: change.policy, halfLifeTokens: change.halfLifeTokens };
    case 'setCacheBytes': return { ...base, modelHashes, size: { t: 'bytes', cacheBytes: change.cacheBytes } };
    case 'setCapacity': return { ...base, modelHashes, size: { t: 'capacity', capacity: change.capacity } };
    case 'setTracing': return { ...base, traceRatio: change.traceRatio };
    case 'setAgent': return { ...base, version: change.version, allowDowngrade: change.allowDowngrade };
    case 'setModel': return { ...base, ...change.model };
    case 'setSampling': return { ...base, sampling: change.sampling };
  }
}
