/** The engine's memory stays within what `inspect` promises, on a model a good deal larger than that. */
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { moefleet as run } from '../../services/demo/src/command-line';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { MODEL } from '../harness/paths';

const moefleet = <T>(...args: string[]): Promise<T> => run<T>(args, { operator: '127.0.0.1:1' });
const folder = mkdtempSync(join(tmpdir(), 'moefleet-memory-'));
const wide = join(folder, 'wide.gguf');
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const CAPACITY = 8;

/** A process and all its descendants, as far as they live. */
function family(pid: number): number[] {
  let children: number[] = [];
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number);
  } catch {
    // it has ended
  }
  return [pid, ...children.flatMap(family)];
}

/** Runs it to its end; its output, and the largest peak resident set among its processes, as the kernel counted it. */
async function peakRss(args: string[]): Promise<{ output: string; peak: number }> {
  const child = spawn(process.execPath, [CLI_PATH, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (data: Buffer) => { output += data.toString(); });
  let peak = 0;
  const timer = setInterval(() => {
    for (const pid of family(child.pid!)) {
      try {
        const match = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
        if (match) peak = Math.max(peak, Number(match[1]) * 1024);
      } catch {
        // it has ended
      }
    }
  }, 5);
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  clearInterval(timer);
  if (code !== 0) throw new Error(`moefleet ${args.join(' ')}: exit ${code}`);
  return { output, peak };
}

interface ResizeRun { alone: string; texts: string[]; shrinks: number; samples: number; leastRoomBytes: number; rssAtFull: number; rssAtLeast: number; pressureEvictions: number }

test('the bound holds at every moment while the cache is resized under load, memory really goes back, and the text stays the same', async () => {
  const middling = join(folder, 'middling.gguf');
  await moefleet('model', 'widen', MODEL, middling, '--width', '2048');
  const run = JSON.parse(await output(join(__dirname, '..', 'harness', 'resize-run.mjs'), middling, '2')) as ResizeRun;
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  process.stdout.write(`    ${run.shrinks} shrinks, resident set ${mib(run.rssAtLeast)} to ${mib(run.rssAtFull)} MiB, never nearer to the bound than ${mib(run.leastRoomBytes)} MiB (${run.samples} samples)\n`);
  expect(run.texts).toEqual(run.texts.map(() => run.alone));
  expect(run.shrinks).toBeGreaterThan(2);
  expect(run.pressureEvictions).toBeGreaterThan(run.shrinks);
  expect(run.leastRoomBytes).toBeGreaterThan(0);
  expect(run.rssAtFull - run.rssAtLeast).toBeGreaterThan(30 * 2 ** 20);
}, 300_000);

/** What a program prints. */
function output(...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(process.execPath, args, { maxBuffer: 1 << 24 }, (error, stdout, stderr) => (error ? reject(new Error(`${error.message}\n${stderr}`)) : resolve(stdout)));
  });
}

test('peak memory of generate on a model over 1 GiB stays under dense + KV + compute + cache + prefill + 150 MiB', async () => {
  await moefleet('model', 'widen', MODEL, wide, '--width', '10240');
  const fileBytes = statSync(wide).size;
  expect(fileBytes).toBeGreaterThan(2 ** 30);
  const flags = ['--model', wide, '--prompt', 'The river rises in the hills and', '--tokens', '48', '--threads', '1', '--capacity', String(CAPACITY)];
  const narrow = await moefleet<{ text: string }>('engine', 'generate', '--model', MODEL, ...flags.slice(2));
  const { output, peak } = await peakRss(['engine', 'generate', ...flags, '--json']);
  const result = JSON.parse(output) as { text: string; memory: Record<'denseBytes' | 'kvBytes' | 'computeBytes' | 'cacheBytes' | 'prefillBytes', number> };
  const { denseBytes, kvBytes, computeBytes, cacheBytes, prefillBytes } = result.memory;
  const bound = denseBytes + kvBytes + computeBytes + cacheBytes + prefillBytes + 150 * 2 ** 20;
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  process.stdout.write(`    file ${mib(fileBytes)} MiB, peak ${mib(peak)} MiB, bound ${mib(bound)} MiB ` +
    `(dense ${mib(denseBytes)}, KV ${mib(kvBytes)}, compute ${mib(computeBytes)}, cache ${mib(cacheBytes)}, prefill ${mib(prefillBytes)})\n`);
  expect(peak).toBeGreaterThan(cacheBytes);
  expect(peak).toBeLessThan(bound);
  expect(bound).toBeLessThan(fileBytes);
  expect(result.text).toBe(narrow.text); // widening changed the size, not the function
}, 600_000);
