/** An engine that takes specs and dies on demand: what a desired-applier needs of an engine host, and the faults. */
import { type HostState, HostUnavailableError } from '../../../edge-agent/src/engine-host';
import type { EngineHostClient } from '../../../edge-agent/src/host/host-client';
import type { RoutingSpec } from '../../../edge-agent/src/native';
import { ScriptedHost } from '../../harness/scripted-host';

export class FaultyEngine {
  state: HostState = { t: 'failed', reason: 'not started yet', retryAtMs: 0 };
  /** every spec that was put in force, in order */
  readonly ran: { generation: number; lambda: number }[] = [];
  private readonly ready: HostState = new ScriptedHost().state;
  private readonly stateListeners = new Set<(state: HostState) => void>();
  private readonly servedListeners = new Set<() => void>();
  private readonly crashListeners = new Set<(event: { reason: string; modelOnTrial: boolean }) => void>();

  /** As the applier knows it. */
  get client(): EngineHostClient { return this as unknown as EngineHostClient; }
  get modelHash(): string { return this.ready.t === 'ready' ? this.ready.model.hash : ''; }

  onStateChange(listener: (state: HostState) => void): void { this.stateListeners.add(listener); }
  onServed(listener: () => void): void { this.servedListeners.add(listener); }
  onCrash(listener: (event: { reason: string; modelOnTrial: boolean }) => void): void { this.crashListeners.add(listener); }

  async apply(spec: RoutingSpec): Promise<void> {
    if (this.state.t !== 'ready') throw new HostUnavailableError('it is down', true);
    this.ran.push({ generation: spec.generation ?? 0, lambda: spec.lambda });
  }

  async shrink(): Promise<void> {}

  start(): void {
    this.state = this.ready;
    for (const listener of this.stateListeners) listener(this.state);
  }

  serve(): void {
    for (const listener of this.servedListeners) listener();
  }

  /** Dies and is started again. */
  crash(): void {
    this.state = { t: 'failed', reason: 'a fault', retryAtMs: 0 };
    for (const listener of this.crashListeners) listener({ reason: 'a fault', modelOnTrial: false });
    this.start();
  }
}
