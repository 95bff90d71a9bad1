/** Looks after the trial of the next release, for the launcher: code 0 where it is healthy, 1 with `outcome.json` where it is not. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Command } from 'commander';
import { addSettings, mergeSettings } from '@moefleet/runtime';
import { readConfig, SETTINGS } from '../config';
import { type Expectation, judgeTrial } from '../upgrade/judge';
import { Slots } from '../upgrade/slots';

const DEFAULT: Expectation = { connected: false, answers: null, deadlineMs: 120_000 };

/** A process that has ended but not been waited for still has its number. */
function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return false;
  }
}

async function main(): Promise<number> {
  const slots = Slots.of(process.env)!;
  const pid = Number(process.env['MOEFLEET_TRIAL_PID']);
  const [, , version = ''] = (slots.read('trying') ?? '').trim().split(' ');
  const flags = addSettings(new Command(), SETTINGS).parse(process.argv.slice(3), { from: 'user' }).opts<Record<string, unknown>>();
  const { apiKey } = readConfig(mergeSettings(SETTINGS, flags, process.env));
  const expected = { ...DEFAULT, ...JSON.parse(slots.read('expected.json') ?? '{}') as Partial<Expectation> };
  const reason = await judgeTrial({
    pid, apiKey, alive: () => isAlive(pid), running: () => slots.lastRunning, now: () => performance.now(),
    sleep: (ms) => delay(ms),
  }, expected);
  slots.write('outcome.json', JSON.stringify({ version, ok: reason === null, reason: reason ?? '' }));
  if (reason !== null) return 1;
  slots.raiseFloor(version);
  return 0;
}

main().then((code) => process.exit(code), (error: Error) => {
  process.stderr.write(`moefleet-agent: the trial cannot be judged: ${error.message}\n`);
  process.exit(1);
});
