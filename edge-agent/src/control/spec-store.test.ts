import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { SpecStore } from './spec-store';
import { StateFolder } from './state-folder';

const log = createLogger('test', 'silent');
let path: string;
let store: SpecStore;
beforeEach(() => {
  path = mkdtempSync(join(tmpdir(), 'moefleet-spec-'));
  store = new SpecStore(new StateFolder(path), log);
});
afterEach(() => rmSync(path, { recursive: true, force: true }));

const current = { generation: 18_446_744_073_709_551_615n, bytes: Buffer.from([9, 0, 0, 255]), origin: 'operator' };
const proven = { generation: 3n, bytes: Buffer.alloc(0), origin: '' };

test('gives back what was saved, byte for byte', () => {
  expect(store.load()).toEqual({ current: null, proven: null });
  store.save({ current, proven });
  expect(store.load()).toEqual({ current, proven });
  store.save({ current: null, proven });
  expect(store.load()).toEqual({ current: null, proven });
});

test.each([
  ['cut short', (text: string) => text.slice(0, text.length / 2)],
  ['of another spec than its hash says', (text: string) => text.replace(current.bytes.toString('base64'), 'AAAA')],
  ['of another shape', () => '{"current": {"generation": 4}}'],
  ['empty', () => ''],
])('a file that is %s is as good as none', (_, damage) => {
  store.save({ current, proven });
  writeFileSync(join(path, 'spec.json'), damage(readFileSync(join(path, 'spec.json'), 'utf8')));
  expect(store.load()).toEqual({ current: null, proven: null });
});

test('a folder in place of the file is as good as none', () => {
  mkdirSync(join(path, 'spec.json'));
  expect(store.load()).toEqual({ current: null, proven: null });
});
