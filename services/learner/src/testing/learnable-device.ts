/** A device as the registry would tell the learner of it: two MoE layers of 32 experts, top 4. */
import { type Device, DeviceInfo } from '@moefleet/proto';

export interface DeviceOptions { modelHash?: string; maxCapacities?: number[]; maxLambda?: number; experts?: number; topK?: number; }

export function learnableDevice(id: string, options: DeviceOptions = {}): Device {
  const { modelHash = 'model-a', maxCapacities = [16, 16], maxLambda = 1, experts = 32, topK = 4 } = options;
  return {
    id, online: true, lastSeenMs: 0n, reported: undefined, desiredGeneration: 0n, desired: undefined, desiredHash: Buffer.alloc(0),
    drift: false, telemetry: undefined, sources: [], traceUrl: '', labels: {}, operatorLabels: {}, bootId: '', held: false, identity: undefined,
    info: DeviceInfo.fromPartial({
      model: { hash: modelHash, experts, topK, moeLayers: maxCapacities.map((_, i) => i), expertBytes: maxCapacities.map(() => 78_336n), status: 2 },
      limits: { maxCacheBytes: 1n, maxLambda, maxCapacities },
    }),
  };
}
