import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CellStore } from './cell-store.mjs';

const folder = mkdtempSync(join(tmpdir(), 'cells-'));
after(() => rmSync(folder, { recursive: true, force: true }));

test('finds what was kept under the same key alone, also in another run, and not in a damaged file', () => {
  const store = new CellStore(join(folder, 'new'));
  assert.equal(store.find({ lambda: 0.1 }), null);
  store.keep({ lambda: 0.1 }, { misses: 7 });
  assert.deepEqual(new CellStore(join(folder, 'new')).find({ lambda: 0.1 }), { misses: 7 });
  assert.equal(store.find({ lambda: 0.2 }), null);
  const [file] = readdirSync(join(folder, 'new'));
  writeFileSync(join(folder, 'new', file), '{"result": {"mis');
  assert.equal(store.find({ lambda: 0.1 }), null);
});
