/**
 * Ends pins whose time is over. The effective spec ignores them from that moment on; what is left to do is to bring their
 * devices in line and then to take the pin away, in this order, so that one who dies half-way leaves a pin that the next
 * finds. One coordinator at a time has the turn, which saves work and no more: bringing in line is level-based, and a pin
 * that has been replaced meanwhile is not taken away.
 */
import type { Logger, Service } from '@moefleet/runtime';
import { NotFoundError, reasonOf, RegistryDataError, RegistryUnavailableError } from '../errors';
import { inChunks } from '../registry/chunks';
import type { DeviceRecord } from '../registry/device-record';
import { hasEnded } from '../registry/pin';
import type { NotedPin } from '../registry/pin-expiry-store';
import type { Registry } from '../registry/registry';
import { auditSubject, describeTarget, type Target, targetOf } from './change';
import type { RolloutEngine } from './rollout-engine';

const SWEEP_EVERY_MS = 1000;
/** Another coordinator goes on this long after the one with the turn has died. */
const TURN_MS = 10_000;
const MOST_PER_SWEEP = 100;
/** Devices brought in line before the turn is taken anew. */
const PER_TURN = 256;

export interface PinExpiryDeps {
  registry: Registry;
  rollouts: Pick<RolloutEngine, 'targets' | 'writer'>;
  /** Takes back the rollouts whose value's time is over. */
  staged: { expire(nowMs: number): Promise<void> };
  now: () => number;
  log: Logger;
}

export class PinExpiry implements Service {
  readonly name = 'pin expiry';
  private timer: NodeJS.Timeout | undefined;
  private sweeping: Promise<void> | null = null;
  private stopping = false;

  constructor(private readonly deps: PinExpiryDeps) {}

  async start(): Promise<void> {
    this.timer = setInterval(() => { this.sweeping ??= this.sweep().finally(() => { this.sweeping = null; }); }, SWEEP_EVERY_MS);
  }

  async stop(): Promise<void> {
    this.stopping = true;
    clearInterval(this.timer);
    await this.sweeping;
    await this.deps.registry.pinExpiry.takeTurn(0).catch(() => {});
  }

  private async sweep(): Promise<void> {
    const { registry, staged, now, log } = this.deps;
    try {
      if (!await this.keepTurn()) return;
      const nowMs = now();
      await staged.expire(nowMs);
      for (const noted of await registry.pinExpiry.due(nowMs, MOST_PER_SWEEP)) if (!await this.end(noted, nowMs)) return;
    } catch (error) {
      // The next sweep finds what is left.
      if (!(error instanceof RegistryUnavailableError)) log.error({ err: error }, 'pins cannot be ended');
    }
  }

  private async keepTurn(): Promise<boolean> {
    return !this.stopping && await this.deps.registry.pinExpiry.takeTurn(TURN_MS);
  }

  /** false: the turn is another's by now. */
  private async end(noted: NotedPin, nowMs: number): Promise<boolean> {
    const { registry, log } = this.deps;
    const { place, field } = noted;
    const stored = await registry.pinExpiry.read(place, field);
    if (stored && hasEnded(stored.pin, nowMs)) {
      const target = targetOf(place);
      const what = `the ${field} pin on ${describeTarget(target)} has ended: its time was over`;
      if (!await this.align(target, `system: ${what}`)) return false;
      const entry = { who: 'system', what, why: stored.pin.why, subject: auditSubject(target), before: stored.pin };
      if (await registry.audit.around(entry, () => registry.pinExpiry.remove(place, field, stored))) log.info({ place, field, expiresMs: stored.pin.expiresMs }, 'pin has ended');
    }
    await registry.pinExpiry.forget(noted, nowMs);
    return true;
  }

  private async align(target: Target, origin: string): Promise<boolean> {
    const devices = await this.devicesOf(target);
    for (let at = 0; at < devices.length; at += PER_TURN) {
      if (!await this.keepTurn()) return false;
      await inChunks(devices.slice(at, at + PER_TURN), ({ id }) => this.alignOne(id, origin));
    }
    return true;
  }

  private async devicesOf(target: Target): Promise<DeviceRecord[]> {
    try {
      return await this.deps.rollouts.targets(target);
    } catch (error) {
      // The device has gone from the registry, or its values there are damaged: it is brought in line when it says hello.
      if (error instanceof NotFoundError || error instanceof RegistryDataError) return [];
      throw error;
    }
  }

  private async alignOne(id: string, origin: string): Promise<void> {
    try {
      await this.deps.rollouts.writer.align(id, origin);
    } catch (error) {
      if (!(error instanceof RegistryDataError)) throw error;
      this.deps.log.warn({ deviceId: id, reason: reasonOf(error) }, 'device cannot be brought in line after a pin has ended');
    }
  }
}
