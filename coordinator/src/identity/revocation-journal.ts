/**
 * Revocations outlive Redis: each lies as a line in the fleet's folder too, beside the key that certificates are signed
 * with; so do the ids that were released and the uses of enrolment tokens. A Redis that was emptied or restored from an older
 * dump has forgotten those made since, and would let their devices in again; whenever Redis is there, what the journal says
 * and Redis does not know is done again, told in the audit log, and live streams are cut. Taking a revocation back leaves a
 * mark in Redis, and so does enrolling under a released id, so that a coordinator which was off meanwhile
 * does not do it again. Coordinators may share the file: lines are appended, and the same line twice says nothing new.
 */
import { appendFileSync, closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger, Service } from '@moefleet/runtime';
import { reasonOf, RegistryUnavailableError } from '../errors';
import { isId } from '../names';
import { tokenUser } from '../registry/identity-record';
import type { Registry } from '../registry/registry';

export const REVOCATIONS_FILE = 'revocations.jsonl';

const KINDS = ['device', 'token', 'release', 'use'] as const;

interface Mark {
  /** what was revoked; `release`: a device's id is nobody's any more; `use`: of a token, by the device that `why` names */
  readonly of: (typeof KINDS)[number];
  readonly id: string;
  /** when */
  readonly revokedMs: number;
  readonly why: string;
  /** it was taken back */
  readonly over: boolean;
}

export interface JournalOptions {
  /** the fleet's */
  folder: string;
  registry: Pick<Registry, 'identities' | 'audit' | 'events' | 'link'>;
  log: Logger;
}

export class RevocationJournal implements Service {
  readonly name = 'revocation journal';
  private readonly path: string;
  /** latest of each subject */
  private readonly marks = new Map<string, Mark>();
  /** of the file, in whole lines */
  private readBytes = 0;
  private stopListening: (() => void)[] = [];
  /** one after the other */
  private working: Promise<void> = Promise.resolve();

  constructor(private readonly options: JournalOptions) {
    this.path = join(options.folder, REVOCATIONS_FILE);
  }

  /** Before devices are let in. */
  async start(): Promise<void> {
    const { events, link } = this.options.registry;
    this.stopListening = [
      events.on(({ kind, deviceId: id }) => {
        if (kind === 'identity') this.soon(() => this.noteDevice(id));
        if (kind === 'token') this.soon(() => this.noteToken(id));
      }),
      link.onUp(() => this.soon(() => this.revokeAgain())),
    ];
    this.soon(() => this.revokeAgain());
    await this.working;
  }

  async stop(): Promise<void> {
    for (const off of this.stopListening) off();
    await this.working;
  }

  private soon(work: () => Promise<void>): void {
    this.working = this.working.then(work).catch((error: unknown) => {
      // When Redis is back all is looked at again.
      if (!(error instanceof RegistryUnavailableError)) this.options.log.error({ err: error, file: this.path }, 'revocation journal');
    });
  }

  private async noteDevice(id: string): Promise<void> {
    const identity = await this.options.registry.identities.read(id);
    if (!identity) return;
    this.note({ of: 'device', id, revokedMs: identity.revokedMs, why: identity.revokedWhy, over: false }, identity.unrevokedMs);
    this.note({ of: 'release', id, revokedMs: identity.releasedMs, why: '', over: false }, identity.enrolledMs);
    if (identity.tokenId) this.note({ of: 'use', id: identity.tokenId, revokedMs: identity.enrolledMs, why: tokenUser(identity), over: false }, 0);
  }

  private async noteToken(id: string): Promise<void> {
    const token = await this.options.registry.identities.token(id);
    if (token) this.note({ of: 'token', id, revokedMs: token.revokedMs, why: token.why, over: false }, 0);
  }

  /** `takenBackMs`: when the latest revocation before this look was taken back; 0: never */
  private note(found: Mark, takenBackMs: number): void {
    this.load();
    const known = this.marks.get(subject(found));
    if (found.revokedMs > 0) {
      if (!known || known.over || known.revokedMs !== found.revokedMs) this.append(found);
    } else if (known && !known.over && takenBackMs >= known.revokedMs) {
      this.append({ ...known, over: true });
    }
  }

  private async revokeAgain(): Promise<void> {
    this.load();
    for (const mark of this.marks.values()) {
      if (mark.over) continue;
      if (mark.of === 'device') await this.revokeDeviceAgain(mark);
      else if (mark.of === 'token') await this.revokeTokenAgain(mark);
      else if (mark.of === 'release') await this.releaseAgain(mark);
      else await this.options.registry.identities.useTokenAgain(mark.id, mark.why);
    }
  }

  private async revokeDeviceAgain(mark: Mark): Promise<void> {
    const { identities } = this.options.registry;
    const identity = await identities.read(mark.id);
    if (identity?.revokedMs) return;
    if ((identity?.unrevokedMs ?? 0) >= mark.revokedMs) return this.append({ ...mark, over: true });
    await this.told(mark, () => identities.revoke(mark.id, mark.revokedMs, mark.why));
    this.tell(mark.id);
  }

  private async releaseAgain(mark: Mark): Promise<void> {
    const { identities } = this.options.registry;
    const identity = await identities.read(mark.id);
    if (identity?.releasedMs) return;
    if ((identity?.enrolledMs ?? 0) > mark.revokedMs) return this.append({ ...mark, over: true });
    await this.told(mark, () => identities.release(mark.id, mark.revokedMs));
    this.tell(mark.id);
  }

  private tell(deviceId: string): void {
    const { events } = this.options.registry;
    events.emit({ kind: 'identity', deviceId });
    events.emit({ kind: 'device', deviceId });
  }

  private async revokeTokenAgain(mark: Mark): Promise<void> {
    const { identities } = this.options.registry;
    const token = await identities.token(mark.id);
    if (token && !token.revokedMs) await this.told(mark, () => identities.revokeToken(mark.id, mark.revokedMs, mark.why));
  }

  private async told({ of, id, revokedMs, why }: Mark, change: () => Promise<void>): Promise<void> {
    const what = `${of === 'release' ? 'release the id of device' : of === 'device' ? 'revoke device' : 'revoke enrolment token'} ${id} again: Redis had lost it`;
    this.options.log.warn({ of, id, revokedMs, why }, what);
    await this.options.registry.audit.around({ who: `journal ${REVOCATIONS_FILE}`, what, why, ...(of !== 'token' ? { subject: { t: 'devices', ids: [id] } } : {}), after: { revokedMs } }, change);
  }

  /** Whoever shares the file may have written since: reads what has been added to it. */
  private load(): void {
    const { bytes, from } = readFrom(this.path, this.readBytes);
    const whole = bytes.lastIndexOf('\n') + 1;
    this.readBytes = from + whole;
    for (const line of bytes.toString('utf8', 0, whole).split('\n').filter(Boolean)) {
      const mark = decodeMark(line);
      if (mark) this.marks.set(subject(mark), mark);
      else this.options.log.error({ file: this.path, line: line.slice(0, 120) }, 'a line of the revocation journal cannot be read; left out');
    }
    // Its writer may have died before the end of the line.
    const last = decodeMark(bytes.toString('utf8', whole));
    if (last) this.marks.set(subject(last), last);
  }

  private append(mark: Mark): void {
    this.marks.set(subject(mark), mark);
    try {
      // Whoever wrote last may have died in the middle of a line.
      appendFileSync(this.path, `\n${JSON.stringify(mark)}\n`, { mode: 0o600 });
    } catch (error) {
      this.options.log.error({ file: this.path, reason: reasonOf(error) },
        'revocation cannot be written to the fleet\'s folder: should Redis lose it too, the device can come back; let the coordinator write there');
    }
  }
}

function subject({ of, id, why }: Mark): string {
  return of === 'use' ? `${of} ${id} ${why}` : `${of} ${id}`;
}

/** What a file holds from a byte on; from its beginning where it has become shorter. */
function readFrom(path: string, offset: number): { bytes: Buffer; from: number } {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { bytes: Buffer.alloc(0), from: 0 };
    throw error;
  }
  try {
    const { size } = fstatSync(file);
    const from = size < offset ? 0 : offset;
    const bytes = Buffer.alloc(size - from);
    return { bytes: bytes.subarray(0, readSync(file, bytes, 0, bytes.length, from)), from };
  } finally {
    closeSync(file);
  }
}

function decodeMark(line: string): Mark | null {
  try {
    const { of, id, revokedMs, why, over } = JSON.parse(line) as Record<string, unknown>;
    const good = KINDS.includes(of as Mark['of']) && typeof id === 'string' && isId(id) && typeof revokedMs === 'number' && revokedMs > 0 && typeof why === 'string' && typeof over === 'boolean';
    return good ? { of: of as Mark['of'], id, revokedMs, why, over } : null;
  } catch {
    return null;
  }
}
