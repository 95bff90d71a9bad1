/** One log file per host and run. */
import { appendFileSync, mkdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** A folder for each run, unless another is asked for. */
export const DEPLOY_LOGS = join(homedir(), '.local', 'state', 'moefleet', 'deploy');

export class HostLogs {
  readonly folder: string;

  constructor(folder: string | undefined, nowMs: number) {
    this.folder = folder ?? join(DEPLOY_LOGS, new Date(nowMs).toISOString().replace(/[:.]/g, '-'));
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
  }

  pathOf(id: string): string {
    return join(this.folder, `${id}.log`);
  }

  write(id: string, line: string): void {
    appendFileSync(this.pathOf(id), `${new Date().toISOString()} ${line}\n`, { mode: 0o600 });
  }
}
