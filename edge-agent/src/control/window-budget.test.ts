import { createLogger } from '@moefleet/runtime';
import { WindowBudget } from './window-budget';

const log = createLogger('test', 'silent');
const DAY_MS = 86_400_000;

function folderOf(text: string | null = null) {
  const files = new Map<string, string>(text === null ? [] : [['window-budget.json', text]]);
  return { files, read: (name: string) => files.get(name) ?? null, write: (name: string, content: string) => void files.set(name, content) };
}
const sampling = { windowTokens: 8, bytesPerHour: 100n, bytesPerDay: 150n };

test('counts an hour and a day, and a restart forgets neither', () => {
  const folder = folderOf();
  let now = DAY_MS * 10;
  const budget = new WindowBudget(folder, log, () => now);
  budget.spend(90);
  expect([budget.allows(sampling, 10), budget.allows(sampling, 11)]).toEqual([true, false]);
  now += 3_600_001;
  const again = new WindowBudget(folder, log, () => now);
  expect([again.allows(sampling, 60), again.allows(sampling, 61)]).toEqual([true, false]);
  now += DAY_MS;
  expect(again.allows(sampling, 100)).toBe(true);
});

test('a clock that is put back neither frees what was spent nor blocks for ever', () => {
  const folder = folderOf();
  let now = DAY_MS * 10;
  new WindowBudget(folder, log, () => now).spend(100);
  now -= DAY_MS * 5;
  const budget = new WindowBudget(folder, log, () => now);
  expect(budget.allows(sampling, 1)).toBe(false);
  now += DAY_MS + 1;
  expect(budget.allows(sampling, 100)).toBe(true);
});

test.each(['', 'null', '[{"timeMs":"x","bytes":1}]', '[{"timeMs":1,"bytes":-5}]', '{'])('a file that holds %j is as good as none', (text) => {
  expect(new WindowBudget(folderOf(text), log, () => DAY_MS).allows(sampling, 100)).toBe(true);
});

test('what is remembered is bounded, and nothing of it is lost', () => {
  const folder = folderOf();
  const budget = new WindowBudget(folder, log, () => DAY_MS);
  for (let i = 0; i < 1000; i += 1) budget.spend(1);
  expect((JSON.parse(folder.files.get('window-budget.json')!) as unknown[]).length).toBe(512);
  expect([budget.allows({ windowTokens: 8, bytesPerHour: 1001n }, 1), budget.allows({ windowTokens: 8, bytesPerHour: 1001n }, 2)]).toEqual([true, false]);
});
