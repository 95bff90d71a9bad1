/** What the benches share: where things are, the command line, and the reference model widened once and kept. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

export const root = join(new URL('.', import.meta.url).pathname, '..', '..');
const fixture = (name) => join(root, 'test', 'fixtures', name);
/** `texts`: one per domain. */
export const fixtures = { model: fixture('tinymoe-17m-q8_0.gguf'), text: fixture('wikitext.txt'), texts: ['code.txt', 'math.txt', 'wikitext.txt'].map(fixture) };

export const defaultWorkFolder = () => join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'moefleet', 'bench');

/** Ends the script over its arguments; written at once, so that nothing is lost. */
export function refuse(message) {
  writeSync(2, `${message}; see --help\n`);
  process.exit(2);
}

/** The script's flags. `--help` prints its head comment, which is where they are told. */
export function readFlags(options) {
  let values;
  try {
    ({ values } = parseArgs({ options: { ...options, help: { type: 'boolean', short: 'h', default: false } } }));
  } catch (error) {
    refuse(error.message);
  }
  if (!values.help) return values;
  const [, head] = /^\/\*\*\n(.*?)\n \*\//s.exec(readFileSync(process.argv[1], 'utf8'));
  writeSync(1, `${head.replace(/^ \* ?/gm, '')}\n`);
  process.exit(0);
}

/** The numbers of a flag such as `8,16,24`. */
export function numbers(values, name) {
  const list = values[name].split(',').filter(Boolean).map(Number);
  return list.every(Number.isFinite) ? list : refuse(`--${name}: expected numbers separated by commas, found '${values[name]}'`);
}

/** One command of moefleet's, its progress on our standard error; the JSON it prints. */
export function moefleet(...args) {
  const out = execFileSync(process.execPath, [join(root, 'services', 'cli', 'bin', 'moefleet.js'), ...args, '--json'],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 });
  return JSON.parse(out);
}

/** The program built beside the engine, for what only native code can measure. */
export function benchTool() {
  const { benchToolPath } = createRequire(join(root, 'services', 'cli', 'package.json'))('@moefleet/edge-agent/engine');
  if (existsSync(benchToolPath())) return benchToolPath();
  writeSync(2, `${benchToolPath()} has not been built; run: npm run build:native\n`);
  process.exit(1);
}

/** The reference model with experts `width` wide; made where it is not there yet. */
export function widened(width, folder = defaultWorkFolder()) {
  const path = join(folder, `tinymoe-17m-q8_0-wide-${width}.gguf`);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  process.stderr.write(`widening the reference model to ${width}: ${path}\n`);
  const part = `${path}.part-${process.pid}`;
  try {
    moefleet('model', 'widen', fixtures.model, part, '--width', String(width));
    renameSync(part, path);
  } finally {
    rmSync(part, { force: true });
  }
  return path;
}

export const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/**
 * Median of a few measurements with an interval that holds the true one in 95% of cases or more, from the order of the values
 * alone (sign test), so that one disturbed measurement counts as one; fewer than six give an infinite interval.
 */
export function medianInterval(list) {
  const n = list.length;
  const sorted = [...list].sort((a, b) => a - b);
  let [below, term, outside] = [0, 0.5 ** n, 0];
  while (outside + term <= 0.025) {
    outside += term;
    term *= (n - below) / (below + 1);
    below++;
  }
  return below === 0 ? { middle: median(list), low: -Infinity, high: Infinity } : { middle: median(list), low: sorted[below - 1], high: sorted[n - below] };
}

/** Student's t for a 95% interval, by degrees of freedom from 1. */
const T95 = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09];

/** Mean of a few measurements with its 95% interval, by Student's t; the interval of one is infinite. */
export function meanInterval(list) {
  const mean = list.reduce((sum, each) => sum + each, 0) / list.length;
  if (list.length < 2) return { middle: mean, low: -Infinity, high: Infinity };
  const error = Math.sqrt(list.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (list.length - 1) / list.length);
  const half = (T95[list.length - 2] ?? 1.96 + 2.4 / (list.length - 1)) * error;
  return { middle: mean, low: mean - half, high: mean + half };
}

export const percent = (value) => `${(value * 100).toFixed(2)}%`;

/** A report of `moefleet engine bench` as the command itself prints it. */
export const show = (report) => createRequire(import.meta.url)(join(root, 'services', 'cli', 'dist', 'bench', 'bench-report.js')).reportText(report);
