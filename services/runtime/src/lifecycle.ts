/**
 * Start and stop of a program's parts. Parts start in the order they were added and stop in the reverse order, under
 * one deadline; a part that fails to start has the ones before it stopped. `stop` may be called twice and runs every
 * clean-up even if one throws.
 */
import type { Logger } from './log';

export interface Service {
  readonly name: string;
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** Shorter than anybody presses Ctrl-C twice. */
const SAME_SIGNAL_MS = 100;

export class Lifecycle {
  private readonly started: Service[] = [];
  private stopping: Promise<void> | null = null;

  constructor(private readonly services: readonly Service[], private readonly log: Logger, private readonly deadlineMs = 10_000) {}

  async start(): Promise<void> {
    for (const service of this.services) {
      if (this.stopping) return;
      this.started.push(service);
      try {
        await service.start();
      } catch (error) {
        await this.stop();
        throw error;
      }
    }
  }

  stop(): Promise<void> {
    this.stopping ??= this.stopAll();
    return this.stopping;
  }

  private async stopAll(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), this.deadlineMs);
    });
    for (const service of [...this.started].reverse()) {
      const outcome = await Promise.race([
        service.stop().catch((err: unknown) => this.log.error({ err, service: service.name }, 'stop failed')),
        deadline,
      ]);
      if (outcome === 'late') this.log.warn({ service: service.name, deadlineMs: this.deadlineMs }, 'stop took too long');
    }
    clearTimeout(timer);
  }
}

/**
 * Starts, waits for SIGINT or SIGTERM (or `ended`), stops. A second signal exits at once, unless it comes with the first: a
 * service manager or a terminal tells a whole group, and the launcher in it passes on what it is told. Resolves with the exit code:
 * 0 after a signal, 1 where `ended` rejected or the start failed.
 */
export async function runUntilSignal(lifecycle: Lifecycle, log: Logger, ended: Promise<void> = new Promise(() => {})): Promise<number> {
  let firstMs: number | null = null;
  let onSignal: (signal: NodeJS.Signals) => void = () => {};
  const signalled = new Promise<void>((resolve) => {
    onSignal = (signal) => {
      if (firstMs !== null) {
        if (performance.now() - firstMs > SAME_SIGNAL_MS) process.exit(130);
        return;
      }
      firstMs = performance.now();
      log.info({ signal }, 'stopping');
      resolve();
    };
  });
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  let code = 0;
  try {
    await Promise.race([lifecycle.start().then(() => Promise.race([signalled, ended])), signalled]);
  } catch (err) {
    log.fatal({ err }, err instanceof Error ? err.message : String(err));
    code = 1;
  }
  await lifecycle.stop();
  process.off('SIGINT', onSignal);
  process.off('SIGTERM', onSignal);
  return code;
}
