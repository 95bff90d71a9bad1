/** One thing that was looked at, what was found, and the command that mends it. */
import { pairs, table } from '../table';

export interface Check {
  /** `broken`: something does not work; `slow`: it works, and could do better; `note`: to know; `ok` */
  state: 'ok' | 'note' | 'slow' | 'broken';
  /** what was looked at: this machine, a coordinator, a device */
  subject: string;
  check: string;
  found: string;
  /** empty where there is nothing to do */
  remedy: string;
}

/** Where a subject's checks are gathered. */
export class Checks {
  readonly all: Check[] = [];
  constructor(private readonly subject: string) {}

  add(state: Check['state'], check: string, found: string, remedy = ''): void {
    this.all.push({ state, subject: this.subject, check, found, remedy });
  }
}

const ORDER: Check['state'][] = ['broken', 'slow', 'note', 'ok'];

/** The worst first. */
export function checksText(checks: readonly Check[]): string {
  const sorted = [...checks].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  const rows = table(['STATE', 'WHERE', 'CHECK', 'FOUND'], sorted.map(({ state, subject, check, found }) => [state === 'broken' ? 'BROKEN' : state, subject, check, found]));
  const remedies = sorted.filter(({ remedy }) => remedy !== '').map(({ subject, check, remedy }) => [`${subject}, ${check}:`, remedy] as const);
  return remedies.length === 0 ? `${rows}\nnothing to mend\n` : `${rows}\nTo mend:\n${pairs(remedies)}`;
}
