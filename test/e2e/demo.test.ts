/** The main job, as a newcomer runs it. */
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { REPO } from '../harness/paths';
import { jaegerOrSkip } from '../harness/test-fleet';
import type { DemoReport } from '../../services/demo/src/report';

const jaeger = jaegerOrSkip();

function processesOf(marker: string): string[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      return readFileSync(`/proc/${pid}/environ`, 'utf8').includes(marker) ? [readFileSync(`/proc/${pid}/cmdline`, 'utf8').replace(/\0/g, ' ')] : [];
    } catch {
      return [];
    }
  });
}

test('the demo measures three devices before and after, shows a trace, and leaves nothing behind', async () => {
  const marker = `MOEFLEET_DEMO_MARKER=${process.pid}-${Date.now()}`;
  const child = spawn(process.execPath, [join(REPO, 'services', 'demo', 'dist', 'main.js'), '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, [marker.split('=')[0]!]: marker.split('=')[1] },
  });
  let output = '';
  child.stdout.on('data', (data: Buffer) => { output += data.toString(); });
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
  const report = JSON.parse(output) as DemoReport;

  expect(report.devices).toHaveLength(3);
  for (const device of report.devices) {
    expect(device.before.lambda).toBe(0);
    expect(device.after.lambda).toBeGreaterThan(0);
    expect(device.after.capacity).toBe(device.before.capacity); // the same memory limit, both at its full
    expect(device.after.missRate).toBeLessThan(device.before.missRate);
    expect(device.after.flashBytesPerToken).toBeLessThan(device.before.flashBytesPerToken);
    expect(Number.isFinite(device.crossEntropyLoss)).toBe(true);
  }
  if (jaeger) {
    expect(report.trace!.missesCounted).toBeGreaterThan(0);
    expect(report.trace!.flashReadSpans).toBe(report.trace!.missesCounted);
    expect(report.trace!.url).toMatch(/^http/);
  }
  expect(processesOf(marker)).toEqual([]);
}, 900_000);
