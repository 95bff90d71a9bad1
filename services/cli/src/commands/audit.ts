/** `moefleet audit`: who changed what. */
import { type Command, Option } from 'commander';
import type { AuditEntry } from '@moefleet/proto';
import { durationFrom, integerFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { type JsonValue, jsonText, toJson } from '../json-text';
import { operatorAction } from '../operator-command';
import { NONE, pairs } from '../table';

const DAY_MS = 86_400_000;

export function addAudit(program: Command, context: Context): void {
  addCommonOptions(program.command('audit').description('who changed what: pins, labels, tokens, rollouts, the learner\'s values'), { operator: true })
    .addOption(new Option('--since <span>', 'changes of that long, such as 1h (default: all that are kept)').argParser(durationFrom(1000, 3650 * DAY_MS)))
    .option('--device <id>', 'changes about this device: by its id, by a selector that matches it today, or about all devices')
    .option('--who <name>', 'changes by this operator')
    .addOption(new Option('--limit <n>', 'the latest that many').argParser(integerFrom(1, 10_000)).default(100))
    .option('--follow', 'go on with those that come, until Ctrl-C; with --json: one object per line')
    .addHelpText('after', `
An entry is written before its change is made; a change that then fails has a second one, "failed: ...". The log keeps
the latest 50,000.

Examples:
  moefleet audit --since 1h
  moefleet audit --device phone-1 --json
  moefleet audit --who alice --follow
`)
    .action(operatorAction(context)(async ({ operator, json, options, out }) => {
      const follow = options['follow'] === true;
      const entries: AuditEntry[] = [];
      const request = {
        sinceMs: BigInt((options['since'] as number | undefined) ?? 0), deviceId: String(options['device'] ?? ''), who: String(options['who'] ?? ''),
        limit: Number(options['limit']), follow,
      };
      await operator.readAudit(request, (entry) => {
        if (follow && json) out(`${JSON.stringify(entryJson(entry))}\n`);
        else if (json) entries.push(entry);
        else out(entryText(entry));
        if (!json && !follow) entries.push(entry);
      });
      if (json && !follow) out(jsonText({ entries: entries.map(entryJson) }));
      else if (entries.length === 0 && !follow) out('no change that matches; see all with: moefleet audit\n');
    }));
}

/** Before and after as values, where they are whole JSON. */
function entryJson(entry: AuditEntry): JsonValue {
  return toJson({ ...entry, before: parsed(entry.before), after: parsed(entry.after) });
}

function entryText(entry: AuditEntry): string {
  const rows: [string, string][] = [[new Date(Number(entry.timeMs)).toISOString(), `${entry.who}: ${entry.what}`]];
  if (entry.why) rows.push(['  why', entry.why]);
  if (entry.before || entry.after) rows.push(['  before', entry.before || NONE], ['  after', entry.after || NONE]);
  return pairs(rows);
}

function parsed(text: string): unknown {
  if (text === '') return null;
  try {
    return JSON.parse(text);
  } catch {
    // cut short by the log
    return text;
  }
}
