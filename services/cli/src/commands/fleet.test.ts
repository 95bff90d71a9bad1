import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCaptured } from '../testing/run-captured';

let folder: string;
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-fleet-')); });
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('makes a fleet, tells its fingerprint and the next steps, and refuses to do it twice', async () => {
  const dir = join(folder, 'north');
  const made = await runCaptured(['fleet', 'init', '--dir', dir, '--name', 'north', '--host', 'a.example.org, 10.0.0.5', '--json']);
  expect(made.code).toBe(0);
  expect(JSON.parse(made.stdout)).toMatchObject({ name: 'north', hosts: ['a.example.org', '10.0.0.5'], fingerprint: expect.stringMatching(/^[0-9a-f]{64}$/), certificateFile: join(dir, 'ca.pem') });
  const again = await runCaptured(['fleet', 'init', '--dir', dir]);
  expect(again).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/ca\.pem: is there already/) });
  const told = await runCaptured(['fleet', 'init', '--dir', join(folder, 'a b')]);
  expect(told.stdout).toContain(`coordinator run --tls-dir '${join(folder, 'a b')}'`);
  expect(existsSync(join(folder, 'a b', 'ca-key.pem'))).toBe(true);
});

test('a CA file that is none is bad input', async () => {
  writeFileSync(join(folder, 'bad.pem'), 'nonsense');
  expect(await runCaptured(['devices', '--ca', join(folder, 'bad.pem')])).toMatchObject({ code: 2, stderr: expect.stringMatching(/--ca: .*bad\.pem" is no certificate/) });
  expect(await runCaptured(['devices', '--ca', join(folder, 'missing.pem')])).toMatchObject({ code: 2, stderr: expect.stringMatching(/missing\.pem.*copy ca\.pem/) });
});
