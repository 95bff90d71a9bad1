/**
 * The audit log: who changed what, as a Redis stream that any coordinator appends to. An entry is written before its
 * change, so that no change is made that the log does not tell; where the change then fails, a second entry says so.
 * The log keeps about MOST_ENTRIES (Redis drops whole blocks of the oldest); no entry takes more than some 5 KiB.
 */
import type { Logger } from '@moefleet/runtime';
import { reasonOf } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

/** What an entry is about: named devices (the first MOST_NAMED are kept), those a canonical selector matches, all. */
export type AuditSubject = { t: 'devices'; ids: readonly string[] } | { t: 'selector'; selector: string } | { t: 'all' } | { t: 'none' };

export interface AuditInput {
  /** name of the operator's token; see operator/caller.ts */
  readonly who: string;
  /** what was done, in words: "lambda 0.25 on all devices" */
  readonly what: string;
  /** what is changed, as it was and as it will be: any value that JSON can hold; undefined: nothing was there, or is any more */
  readonly before?: unknown;
  readonly after?: unknown;
  readonly why?: string;
  readonly subject?: AuditSubject;
  /** default: now */
  readonly timeMs?: number;
}

export interface AuditEntry {
  /** Redis' own id, `<ms>-<n>`: counts up */
  readonly id: string;
  readonly timeMs: number;
  readonly who: string;
  readonly what: string;
  /** JSON, or '' */
  readonly before: string;
  readonly after: string;
  readonly why: string;
  readonly coordinatorId: string;
  readonly subject: AuditSubject;
}

export type AuditFilter = (entry: AuditEntry) => boolean;

/** At most; about 25 MiB of Redis at 500 bytes an entry. */
const MOST_ENTRIES = 50_000;
const MOST_TEXT = 500;
const MOST_JSON = 1500;
const MOST_NAMED = 50;
const PAGE = 500;
const ENTRY_ID = /^\d{1,16}-\d{1,16}$/;

export class AuditStore {
  constructor(
    private readonly link: RedisLink, private readonly keys: Keys, private readonly coordinatorId: string, private readonly log: Logger,
    private readonly most = MOST_ENTRIES,
  ) {}

  /** Resolves when it is in Redis; rejects where it is not, and then the change must not be made. */
  async record(entry: AuditInput): Promise<void> {
    const { who, what, before, after, why = '', subject = { t: 'none' }, timeMs = Date.now() } = entry;
    const kept = {
      timeMs, who: cut(who, MOST_TEXT), what: cut(what, MOST_TEXT), before: json(before), after: json(after), why: cut(why, MOST_TEXT),
      coordinatorId: this.coordinatorId, subject: subject.t === 'devices' ? { t: 'devices', ids: subject.ids.slice(0, MOST_NAMED) } : subject,
    };
    await this.link.run(this.keys.audit, (client) => client.xadd(this.keys.audit, 'MAXLEN', '~', this.most, '*', 'entry', JSON.stringify(kept)));
  }

  /** Records, then makes the change; a change that fails is recorded as failed. */
  async around<T>(entry: AuditInput, change: () => Promise<T>): Promise<T> {
    await this.record(entry);
    try {
      return await change();
    } catch (error) {
      await this.record({ ...entry, what: `failed: ${entry.what}`, before: undefined, after: { reason: reasonOf(error) } }).catch(() => {});
      throw error;
    }
  }

  /** The latest `limit` that pass, oldest first, and where to go on from. */
  async latest(sinceMs: number, limit: number, filter: AuditFilter): Promise<{ entries: AuditEntry[]; last: string }> {
    const found: AuditEntry[] = [];
    const oldest = sinceMs > 0 ? String(Math.floor(sinceMs)) : '-';
    let last = '';
    for (let newest = '+'; ;) {
      const page = await this.link.run(this.keys.audit, (client) => client.xrevrange(this.keys.audit, newest, oldest, 'COUNT', PAGE));
      last ||= page[0]?.[0] ?? '0-0';
      for (const entry of this.decode(page)) if (found.length < limit && filter(entry)) found.push(entry);
      if (page.length < PAGE || found.length >= limit) return { entries: found.reverse(), last };
      newest = `(${page.at(-1)![0]}`;
    }
  }

  /** At most a page of those after `last` that pass, oldest first. `last` comes from here or from `latest`. */
  async after(last: string, filter: AuditFilter): Promise<{ entries: AuditEntry[]; last: string }> {
    const page = await this.link.run(this.keys.audit, (client) => client.xrange(this.keys.audit, `(${last}`, '+', 'COUNT', PAGE));
    return { entries: this.decode(page).filter(filter), last: page.at(-1)?.[0] ?? last };
  }

  private decode(page: readonly [id: string, fields: string[]][]): AuditEntry[] {
    return page.flatMap(([id, fields]) => {
      try {
        return [decodeEntry(id, fields[1] ?? '')];
      } catch (error) {
        this.log.warn({ key: this.keys.audit, id, reason: reasonOf(error) }, 'audit entry cannot be decoded');
        return [];
      }
    });
  }
}

/** Throws for what is no entry; what Redis holds is not trusted. */
function decodeEntry(id: string, text: string): AuditEntry {
  const value = JSON.parse(text) as Partial<AuditEntry> | null;
  const { timeMs, who, what, before, after, why, coordinatorId, subject } = value ?? {};
  if (!ENTRY_ID.test(id) || typeof timeMs !== 'number' || !Number.isSafeInteger(timeMs) || timeMs < 0) throw new TypeError('it has no time');
  const texts = [who, what, before, after, why, coordinatorId];
  if (!texts.every((one) => typeof one === 'string')) throw new TypeError('fields are missing');
  if (!isSubject(subject)) throw new TypeError('its subject is none');
  return { id, timeMs, who: who!, what: what!, before: before!, after: after!, why: why!, coordinatorId: coordinatorId!, subject };
}

function isSubject(value: unknown): value is AuditSubject {
  const { t, ids, selector } = (value ?? {}) as { t?: unknown; ids?: unknown; selector?: unknown };
  if (t === 'devices') return Array.isArray(ids) && ids.every((id) => typeof id === 'string');
  return t === 'all' || t === 'none' || (t === 'selector' && typeof selector === 'string');
}

function json(value: unknown): string {
  if (value === undefined) return '';
  return cut(JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? String(inner) : inner)), MOST_JSON);
}

function cut(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most).replace(/[\ud800-\udbff]$/, '')}…` : text;
}
