/**
 * The folder of slots that the launcher (deploy/bundle/bin/moefleet-agent) keeps beside the state: which release runs, which
 * is unpacked where, and how the last trial of a new one ended. The launcher reads `next` and writes `outcome.json` and
 * `current`; everything else is this side's.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { compareVersions, MANIFEST_NAME, parseVersion } from '@moefleet/runtime';
import { replaceFile } from '../whole-file';

export type SlotName = 'a' | 'b' | 'installed';

/** How the last trial ended; the launcher and the judge write it. */
export interface Outcome { readonly version: string; readonly ok: boolean; readonly reason: string; }

/** What was attempted, and for which generation of the desired spec. */
export interface Attempt { readonly version: string; readonly generation: string; }

export interface Running { readonly pid: number; readonly version: string; readonly httpUrl: string; }

export class Slots {
  private constructor(readonly folder: string, private readonly installed: string, readonly running: SlotName) {}

  /** null where no launcher looks after this agent. `env`: MOEFLEET_SLOTS, MOEFLEET_INSTALLED and MOEFLEET_SLOT as the launcher sets them. */
  static of(env: NodeJS.ProcessEnv): Slots | null {
    const { MOEFLEET_SLOTS: folder, MOEFLEET_INSTALLED: installed, MOEFLEET_SLOT: slot } = env;
    if (!folder || !installed) return null;
    return new Slots(folder, installed, slot === 'a' || slot === 'b' ? slot : 'installed');
  }

  path(slot: SlotName): string {
    return slot === 'installed' ? this.installed : join(this.folder, slot);
  }

  /** Where the next release goes: never over the one that runs. */
  get free(): 'a' | 'b' {
    return this.running === 'a' ? 'b' : 'a';
  }

  /** The slot that holds a release, null for none; of several the installed one. */
  holding(version: string): SlotName | null {
    return (['installed', 'a', 'b'] as const).find((slot) => this.versionIn(slot) === version) ?? null;
  }

  versionIn(slot: SlotName): string | null {
    const { version } = parsed(this.readFile(join(this.path(slot), MANIFEST_NAME)));
    return typeof version === 'string' ? version : null;
  }

  /** The newest release that has stood a trial here; null before the first. */
  get floor(): string | null {
    const text = this.read('floor')?.trim() ?? '';
    try {
      return text === '' ? null : parseVersion(text).text;
    } catch {
      return null;
    }
  }

  /** Never falls. */
  raiseFloor(version: string): void {
    const { floor } = this;
    if (floor === null || compareVersions(parseVersion(version), parseVersion(floor)) > 0) this.write('floor', `${version}\n`);
  }

  get outcome(): Outcome | null {
    const { version, ok, reason } = parsed(this.read('outcome.json'));
    return typeof version === 'string' && typeof reason === 'string' ? { version, ok: ok === true, reason: reason.slice(0, 1000) } : null;
  }

  get attempt(): Attempt | null {
    const { version, generation } = parsed(this.read('attempt.json'));
    return typeof version === 'string' && typeof generation === 'string' ? { version, generation } : null;
  }

  get lastRunning(): Running | null {
    const { pid, version, httpUrl } = parsed(this.read('running.json'));
    return typeof pid === 'number' && typeof version === 'string' && typeof httpUrl === 'string' ? { pid, version, httpUrl } : null;
  }

  /** The launcher takes the file away when the judge has found the release healthy. */
  get onTrial(): boolean {
    return this.read('trying') !== null;
  }

  /** Tells the launcher what to start when this agent has ended. */
  startNext(slot: SlotName, attempt: Attempt): void {
    this.write('attempt.json', JSON.stringify(attempt));
    this.write('next', `${slot} ${attempt.version}\n`);
  }

  clear(slot: 'a' | 'b'): void {
    rmSync(this.path(slot), { recursive: true, force: true });
  }

  read(name: string): string | null {
    return this.readFile(join(this.folder, name));
  }

  /** The old one or the new, on the disk when it returns. */
  write(name: string, text: string): void {
    replaceFile(join(this.folder, name), text);
  }

  private readFile(path: string): string | null {
    try {
      return readFileSync(path, 'utf8');
    } catch {
      return null;
    }
  }
}

/** Empty where it is no JSON object: a file cut short by a power loss is as good as none. */
function parsed(text: string | null): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text ?? '{}');
    return typeof value === 'object' && value !== null ? value as Record<string, unknown> : {};
  } catch {
    return {};
  }
}
