/** Puts another model in the place of the loaded one, between two requests. */
import type { EngineQueue } from '../engine-queue';
import type { EngineHostClient } from '../host/host-client';

export class ModelSwitch {
  constructor(private readonly host: EngineHostClient, private readonly queue: EngineQueue) {}

  /**
   * Resolves when `path` is loaded. Rejects with the reason where it cannot be, or with QueueFullError; the last good
   * model then serves on. With no engine there is no request to wait for, nor to disturb.
   */
  load(path: string): Promise<void> {
    if (this.host.state.t !== 'ready') return this.host.load(path);
    return this.queue.exclusive(() => this.host.load(path), new AbortController().signal);
  }
}
