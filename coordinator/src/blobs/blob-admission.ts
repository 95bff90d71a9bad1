/**
 * Which devices may fetch: those with a certificate of the fleet that the registry has not revoked, released, or replaced
 * by another key. The answer is kept for a moment, as a device asks for one chunk after the other.
 */
import { DeviceRefusedError } from '../errors';
import type { PeerDevice } from '../identity/peer-device';
import type { Registry } from '../registry/registry';

const KEPT_MS = 10_000;
const MOST_KEPT = 20_000;

export class BlobAdmission {
  private readonly until = new Map<string, number>();

  constructor(private readonly registry: Pick<Registry, 'identities' | 'events'>, private readonly now: () => number) {
    registry.events.on(({ kind, deviceId }) => {
      if (kind === 'identity') this.until.delete(deviceId);
    });
  }

  /** Throws DeviceRefusedError, RegistryUnavailableError. */
  async admit({ deviceId, keyHash }: PeerDevice): Promise<void> {
    const nowMs = this.now();
    if ((this.until.get(deviceId) ?? 0) > nowMs) return;
    const known = await this.registry.identities.read(deviceId);
    if (known?.revokedMs) throw new DeviceRefusedError(deviceId, `revoked${known.revokedWhy ? ` (${known.revokedWhy})` : ''}`);
    if (known?.releasedMs || (known?.keyHash && known.keyHash !== keyHash)) throw new DeviceRefusedError(deviceId, 'the id was released, or another installation has enrolled under it since');
    if (this.until.size >= MOST_KEPT) this.until.clear();
    this.until.set(deviceId, nowMs + KEPT_MS);
  }
}
