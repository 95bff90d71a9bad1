/**
 * Agents whose control groups allow them little memory, each used the moment it serves. Whatever the limit, nobody is killed:
 * an agent starts within it, or says what it needs. Experts come from disk far faster than the watch looks, so that a
 * cache that is not bounded before it is filled takes all that there is between two looks.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Child } from '../../services/demo/src/child-process';
import { moefleet } from '../../services/demo/src/command-line';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { memoryGroupOrSkip, type TestMemoryGroup } from '../harness/memory-group';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';

const MIB = 2 ** 20;
/** 60 MiB of experts, 0.3 MiB each. */
const WIDTH = '512';

const folder = mkdtempSync(join(tmpdir(), 'moefleet-tight-'));
const wide = join(folder, 'wide.gguf');
const children: Child[] = [];
const groups: TestMemoryGroup[] = [];

beforeAll(async () => {
  await moefleet(['model', 'widen', MODEL, wide, '--width', WIDTH], { operator: '127.0.0.1:1' });
}, 60_000);
afterAll(async () => {
  await Promise.all(children.map((child) => child.stop()));
  for (const group of groups) await group.remove();
  rmSync(folder, { recursive: true, force: true });
});

/** Its answer to a prompt that fills the cache, or why there is none; null where no group can be made. */
async function firstAnswer(limitMib: number): Promise<{ group: TestMemoryGroup; text: string; reason: string } | null> {
  const group = memoryGroupOrSkip(`moefleet-tight-${limitMib}`, limitMib * MIB);
  if (!group) return null;
  groups.push(group);
  const id = `tight-${limitMib}`;
  const child = Child.start({
    name: id, logPath: join(folder, `${id}.log`), keep: false, env: { MOEFLEET_LOG_LEVEL: 'info' },
    ...group.wrap(process.execPath, [
      CLI_PATH, 'agent', 'run', '--id', id, '--model', wide, '--max-cache', '1GiB', '--coordinator', 'none', '--state-dir', join(folder, id),
      '--http', '127.0.0.1:0', '--threads', '1', '--otlp-endpoint', '', '--memory-low', '16MiB',
    ]),
  });
  children.push(child);
  const httpUrl = String((await child.logLine('listening'))['httpUrl']);
  const { status, reason } = await until(`${id} serves, or says why not`, async () => {
    const health = await (await fetch(`${httpUrl}/healthz`)).json() as { status: string; reason?: string };
    return health.status === 'loading' ? null : health;
  }, 60_000);
  // It tries again by itself, as what runs beside it may end.
  if (status === 'failed') return { group, text: '', reason: reason! };
  const prompt = 'The river rises in the hills and '.repeat(12);
  const response = await fetch(`${httpUrl}/v1/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ prompt, max_tokens: 64, temperature: 1, seed: 7 }) });
  return { group, text: await response.text(), reason: '' };
}

test('an agent that may use little memory starts within it or says what it needs, and is never killed', async () => {
  const limits = [64, 92, 104, 120];
  const answers = await Promise.all(limits.map(firstAnswer));
  for (const [i, answer] of answers.entries()) {
    if (!answer) return;
    expect({ limitMib: limits[i], kills: answer.group.oomKills() }).toEqual({ limitMib: limits[i], kills: 0 });
  }
  const [tooLittle, ...enough] = answers.map((answer) => answer!);
  expect(tooLittle!.reason).toMatch(/too little memory for .* MiB are needed, .* MiB are left of the 64\.0 MiB that the agent may use; allow it \d+\.\d MiB or more/);
  for (const { reason, text } of enough) {
    expect(reason).toBe('');
    expect(text).toContain('"completion_tokens":64');
  }
}, 90_000);
