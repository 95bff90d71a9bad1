import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseFacts } from './device-facts';
import { factsText } from './testing/facts-text';
import { renderUnit, type Wanted } from './wanted';

const wanted: Wanted = { id: 'a', coordinator: '10.0.0.1:7400', labels: '', cacheBytes: null, model: { name: 'm.gguf' }, user: 'daemon', memoryLimit: '80%', http: '127.0.0.1:8400', bundleKey: null, settings: {} };
const analyses = spawnSync('systemd-analyze', ['--version']).status === 0;
if (!analyses) process.stderr.write('\nSYSTEMD-ANALYZE IS MISSING: the check of the systemd unit is SKIPPED; apt-get install systemd\n');

(analyses ? test : test.skip)('systemd finds nothing wrong with the unit, and little that it exposes', () => {
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-unit-'));
  try {
    mkdirSync(join(folder, 'current', 'bin'), { recursive: true });
    writeFileSync(join(folder, 'current', 'bin', 'moefleet-agent'), '#!/bin/sh\n', { mode: 0o755 });
    const unit = join(folder, 'moefleet-agent.service');
    writeFileSync(unit, renderUnit(wanted, parseFacts(factsText({ prefix: folder, config: folder }))).content);
    const { status, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', unit], { encoding: 'utf8' });
    expect({ status, complaints: stderr.split('\n').filter((line) => line.includes('moefleet-agent')) }).toEqual({ status: 0, complaints: [] });
    const version = Number(/^systemd (\d+)/.exec(execFileSync('systemd-analyze', ['--version'], { encoding: 'utf8' }))?.[1]);
    // Of 10 at worst; what it holds against the unit is above all that it uses the network. An offline look is there from 250 on.
    if (version >= 250) {
      const security = spawnSync('systemd-analyze', ['security', '--offline=yes', '--threshold=20', '--no-pager', unit], { encoding: 'utf8' });
      expect(security.stdout).toMatch(/Overall exposure level for moefleet-agent\.service: [01]\.\d OK/);
      expect(security.status).toBe(0);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
