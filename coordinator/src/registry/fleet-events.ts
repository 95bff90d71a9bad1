/**
 * Wake-ups: something about a device has changed, read it again. Listeners in this coordinator hear at once, other
 * coordinators through Redis, where the wake-ups of one turn of the event loop travel together. There they carry no state and
 * may be lost; whoever acts on them reads the registry, and looks again after a while without one.
 */
import type { Logger } from '@moefleet/runtime';
import type { DesiredRecord } from './device-record';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

export interface FleetEvent {
  /**
   * `desired`: what it shall run; `device`: what it reports, or whether it is there; `taken`: a newer stream has its lease;
   * `measure`: a measurement is wanted of it; `identity`: whether it may be here; `token`: an enrolment token, whose id stands
   * for a device's; `peers`: who shares a model at a place, by the name of the group (peer-store.ts)
   */
  kind: 'desired' | 'device' | 'taken' | 'measure' | 'identity' | 'token' | 'peers';
  deviceId: string;
  /** of `desired`, in the coordinator that has just written it: what a read would find */
  written?: Extract<DesiredRecord, { t: 'set' }>;
  /** of `device`, in the coordinator that has its stream and has just written so: it runs this, and nothing newer is on its way to it */
  runs?: { generation: bigint; /** hex */ hash: string };
}

const KINDS: readonly string[] = ['desired', 'device', 'taken', 'measure', 'identity', 'token', 'peers'] satisfies FleetEvent['kind'][];

/** Of one message, so that none becomes a burden for Redis. */
const MOST_IDS = 512;

export class FleetEvents {
  private readonly listeners = new Set<(event: FleetEvent) => void>();
  private readonly waiting = new Map<FleetEvent['kind'], Set<string>>();

  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly coordinatorId: string, private readonly log: Logger) {
    link.subscribe(keys.events, (message) => this.receive(message));
  }

  on(listener: (event: FleetEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  emit(event: FleetEvent): void {
    this.deliver(event);
    if (this.waiting.size === 0) setImmediate(() => this.publish());
    const ids = this.waiting.get(event.kind);
    if (ids) ids.add(event.deviceId);
    else this.waiting.set(event.kind, new Set([event.deviceId]));
  }

  private publish(): void {
    for (const [kind, set] of this.waiting) {
      const ids = [...set];
      for (let at = 0; at < ids.length; at += MOST_IDS) {
        // One alone in the form that an older coordinator knows.
        const what = ids.length === 1 ? { deviceId: ids[0] } : { deviceIds: ids.slice(at, at + MOST_IDS) };
        const message = JSON.stringify({ from: this.coordinatorId, kind, ...what });
        // A wake-up that does not get through costs time only.
        this.link.run(this.keys.events, (client) => client.publish(this.keys.events, message)).catch(() => {});
      }
    }
    this.waiting.clear();
  }

  private receive(message: string): void {
    const told = parseEvents(message);
    if (!told) this.log.warn({ channel: this.keys.events, bytes: message.length }, 'message is no fleet event');
    else if (told.from !== this.coordinatorId) for (const deviceId of told.deviceIds) this.deliver({ kind: told.kind, deviceId });
  }

  private deliver(event: FleetEvent): void {
    for (const listener of [...this.listeners]) listener(event);
  }
}

function parseEvents(message: string): { kind: FleetEvent['kind']; deviceIds: string[]; from: unknown } | null {
  try {
    const { kind, deviceId, deviceIds = [deviceId], from } = JSON.parse(message) as { kind?: unknown; deviceId?: unknown; deviceIds?: unknown; from?: unknown };
    const known = typeof kind === 'string' && KINDS.includes(kind) && Array.isArray(deviceIds) && deviceIds.every((id) => typeof id === 'string');
    return known ? { kind: kind as FleetEvent['kind'], deviceIds: deviceIds as string[], from } : null;
  } catch {
    return null;
  }
}
