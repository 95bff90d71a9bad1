import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readExactly, ShortFileError } from './read-exactly';

test('gives all that was asked for, or says where the file ends', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-read-'));
  writeFileSync(join(folder, 'file'), 'twelve bytes');
  const file = await open(join(folder, 'file'));
  expect((await readExactly(file, 7, 5)).toString()).toBe('bytes');
  expect((await readExactly(file, 12, 0)).length).toBe(0);
  await expect(readExactly(file, 7, 6)).rejects.toEqual(new ShortFileError(12));
  await file.close();
  rmSync(folder, { recursive: true });
});
