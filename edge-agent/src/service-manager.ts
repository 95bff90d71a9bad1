/**
 * What systemd is told of the agent where it runs it as a service of Type=notify: that it is ready, that it stops, and,
 * where the unit asks (WatchdogSec), that its event loop still turns. Node.js has no datagrams over Unix sockets, so
 * systemd's own systemd-notify speaks for the agent; the unit therefore says NotifyAccess=all.
 */
import { execFile } from 'node:child_process';
import type { Logger, Service } from '@moefleet/runtime';

/** Messages per watchdog interval, so that one may be lost. */
const BEATS_PER_INTERVAL = 3;
const SEND_TIMEOUT_MS = 5_000;

export class ServiceManager implements Service {
  readonly name = 'service manager';
  private timer: NodeJS.Timeout | null = null;
  private complained = false;

  private constructor(private readonly socket: string, private readonly watchdogMs: number | null, private readonly path: string | undefined, private readonly log: Logger, private readonly program: string, private readonly launched: boolean) {}

  /** null where nobody asks to be told. `env`: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them. */
  static of(env: NodeJS.ProcessEnv, log: Logger, program = 'systemd-notify'): ServiceManager | null {
    const socket = env['NOTIFY_SOCKET'];
    if (!socket) return null;
    const usec = Number(env['WATCHDOG_USEC']);
    const mine = env['WATCHDOG_PID'] === undefined || Number(env['WATCHDOG_PID']) === process.pid;
    return new ServiceManager(socket, usec > 0 && mine ? usec / 1000 : null, env['PATH'], log, program, env['MOEFLEET_SLOTS'] !== undefined);
  }

  async start(): Promise<void> {
    await this.tell('READY=1');
    if (this.watchdogMs !== null) this.timer = setInterval(() => void this.tell('WATCHDOG=1'), this.watchdogMs / BEATS_PER_INTERVAL);
  }

  async stop(): Promise<void> {
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
    // A launcher goes on after this agent, with another.
    if (!this.launched) await this.tell('STOPPING=1');
  }

  /** Never rejects: an agent that cannot tell serves on until it is told otherwise. */
  private tell(state: string): Promise<void> {
    return new Promise((resolve) => {
      execFile(this.program, [state], { env: { PATH: this.path, NOTIFY_SOCKET: this.socket }, timeout: SEND_TIMEOUT_MS }, (error) => {
        if (error && !this.complained) this.log.warn({ state, reason: error.message }, 'systemd cannot be told; install systemd-notify (package systemd), or take Type=notify and WatchdogSec out of the unit');
        this.complained ||= error !== null;
        resolve();
      });
    });
  }
}
