/** Tells the others that this coordinator is alive, for as long as it is. */
import { type Logger, type Service, VERSION } from '@moefleet/runtime';
import { RegistryUnavailableError } from './errors';
import type { CoordinatorRecord } from './registry/coordinator-store';
import type { Registry } from './registry/registry';

const RENEW_EVERY_MS = 5000;

export type PresenceFigures = Pick<CoordinatorRecord, 'gatewayAddress' | 'operatorAddress' | 'streams' | 'framesShed'>;

export class Presence implements Service {
  readonly name = 'presence';
  private readonly sinceMs = Date.now();
  private timer: NodeJS.Timeout | undefined;
  private unsubscribe: (() => void) | undefined;
  private stopping = false;

  constructor(private readonly registry: Registry, private readonly id: string, private readonly figures: () => PresenceFigures, private readonly log: Logger) {}

  async start(): Promise<void> {
    this.unsubscribe = this.registry.link.onUp(() => void this.renew());
    this.timer = setInterval(() => void this.renew(), RENEW_EVERY_MS);
    await this.renew();
  }

  async stop(): Promise<void> {
    if (this.stopping) return;
    this.stopping = true;
    clearInterval(this.timer);
    this.unsubscribe?.();
    await this.registry.coordinators.remove(this.id).catch((error: unknown) => this.tell(error));
  }

  private async renew(): Promise<void> {
    if (this.stopping) return;
    await this.registry.coordinators.put({ id: this.id, version: VERSION, sinceMs: this.sinceMs, stopping: false, ...this.figures() }).catch((error: unknown) => this.tell(error));
  }

  private tell(error: unknown): void {
    if (!(error instanceof RegistryUnavailableError)) this.log.error({ err: error }, 'this coordinator cannot be told of');
  }
}
