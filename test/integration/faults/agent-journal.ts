/** What a scripted agent says of itself, and what must be true of it whatever happened. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface ScriptedAgentOptions { id: string; coordinator: string; folder: string }

/** Where it can be held. */
export type AgentStep = 'received' | 'applying' | 'persisted' | 'reported' | 'measuring';
export interface AgentTold { at: AgentStep; lambda: number }

export type JournalEntry =
  | { t: 'boot'; bootId: string }
  | { t: 'received' | 'ran' | 'persisted'; bootId: string; generation: number; lambda: number }
  | { t: 'counted'; bootId: string; tokens: number };

export const JOURNAL = 'journal.jsonl';
/** Folder of its state. */
export const STATE = 'state';
/** From here on it costs quality. */
export const BAD_LAMBDA = 0.9;

export function readJournal(folder: string): JournalEntry[] {
  const lines = readFileSync(join(folder, JOURNAL), 'utf8').split('\n');
  // The last may have been cut off by a kill.
  return lines.slice(0, -1).map((line) => JSON.parse(line) as JournalEntry);
}

/** Throws where the agent ran, or was sent, what it should not have been. `desired`: λ of every change so far. */
export function checkJournal(id: string, journal: readonly JournalEntry[], desired: ReadonlySet<number>): void {
  const lambdaOf = new Map<number, number>();
  let received = 0;
  let persisted = 0;
  let booted = false;
  for (const entry of journal) {
    if (entry.t === 'boot') booted = true;
    if (entry.t === 'boot' || entry.t === 'counted') continue;
    const { generation, lambda } = entry;
    const what = `${id}: ${entry.t} generation ${generation} with lambda ${lambda}`;
    if (generation === 0 ? lambda !== 0 : !desired.has(lambda)) throw new Error(`${what}, which was never desired`);
    if ((lambdaOf.get(generation) ?? lambda) !== lambda) throw new Error(`${what}, which was lambda ${lambdaOf.get(generation)} before`);
    lambdaOf.set(generation, lambda);
    if (entry.t === 'received') {
      if (generation < received) throw new Error(`${what} after generation ${received}: it was sent back`);
      received = generation;
    }
    if (entry.t === 'ran') {
      if (booted && generation !== persisted) throw new Error(`${what} after its start, though generation ${persisted} was its last good one`);
      if (generation < persisted) throw new Error(`${what}, though it ran generation ${persisted} already`);
      booted = false;
    }
    if (entry.t === 'persisted') persisted = generation;
  }
}

/** Sum over its boots of what it has counted. */
export function tokensOf(journal: readonly JournalEntry[]): number {
  const last = new Map<string, number>();
  for (const entry of journal) if (entry.t === 'counted') last.set(entry.bootId, entry.tokens);
  return [...last.values()].reduce((sum, tokens) => sum + tokens, 0);
}
