/**
 * Wake-ups: something about a device has changed, read it again. Listeners in this coordinator hear at once, other
 * coordinators through Redis. They carry no state and may be lost; whoever acts on them reads the registry, and looks
 * again after a while without one.
 */
import type { Logger } from '@moefleet/runtime';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

export interface FleetEvent {
  /** `desired`: what it shall run; `device`: what it reports, or whether it is there; `taken`: a newer stream has its lease */
  kind: 'desired' | 'device' | 'taken';
  deviceId: string;
}

const KINDS: readonly string[] = ['desired', 'device', 'taken'] satisfies FleetEvent['kind'][];

export class FleetEvents {
  private readonly listeners = new Set<(event: FleetEvent) => void>();

  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly coordinatorId: string, private readonly log: Logger) {
    link.subscribe(keys.events, (message) => this.receive(message));
  }

  on(listener: (event: FleetEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  emit(event: FleetEvent): void {
    this.deliver(event);
    const message = JSON.stringify({ ...event, from: this.coordinatorId });
    // A wake-up that does not get through costs time only.
    this.link.run(this.keys.events, (client) => client.publish(this.keys.events, message)).catch(() => {});
  }

  private receive(message: string): void {
    const event = parseEvent(message);
    if (!event) this.log.warn({ channel: this.keys.events, bytes: message.length }, 'message is no fleet event');
    else if (event.from !== this.coordinatorId) this.deliver({ kind: event.kind, deviceId: event.deviceId });
  }

  private deliver(event: FleetEvent): void {
    for (const listener of [...this.listeners]) listener(event);
  }
}

function parseEvent(message: string): FleetEvent & { from: unknown } | null {
  try {
    const value = JSON.parse(message) as Partial<FleetEvent & { from: unknown }> | null;
    const known = KINDS.includes(value?.kind ?? '') && typeof value?.deviceId === 'string';
    return known ? value as FleetEvent & { from: unknown } : null;
  } catch {
    return null;
  }
}
