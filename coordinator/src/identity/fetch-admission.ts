/**
 * Which devices may fetch models and releases: those with a certificate of the fleet that the registry has not revoked,
 * released, or replaced by another key. The answer is kept for a moment, as a device asks for one chunk after the other.
 */
import { DeviceRefusedError } from '../errors';
import type { Registry } from '../registry/registry';
import type { PeerDevice } from './peer-device';

const KEPT_MS = 10_000;
const MOST_KEPT = 20_000;

export class FetchAdmission {
  private readonly admitted = new Map<string, { keyHash: string; untilMs: number }>();

  constructor(private readonly registry: Pick<Registry, 'identities' | 'events'>, private readonly now: () => number) {
    registry.events.on(({ kind, deviceId }) => {
      if (kind === 'identity') this.admitted.delete(deviceId);
    });
  }

  /** Throws DeviceRefusedError, RegistryUnavailableError. */
  async admit({ deviceId, keyHash }: PeerDevice): Promise<void> {
    const nowMs = this.now();
    const kept = this.admitted.get(deviceId);
    if (kept && kept.keyHash === keyHash && kept.untilMs > nowMs) return;
    const known = await this.registry.identities.read(deviceId);
    if (known?.revokedMs) throw new DeviceRefusedError(deviceId, `revoked${known.revokedWhy ? ` (${known.revokedWhy})` : ''}`);
    if (known?.releasedMs || (known?.keyHash && known.keyHash !== keyHash)) throw new DeviceRefusedError(deviceId, 'the id was released, or another installation has enrolled under it since');
    if (this.admitted.size >= MOST_KEPT) this.admitted.clear();
    this.admitted.set(deviceId, { keyHash, untilMs: nowMs + KEPT_MS });
  }
}
