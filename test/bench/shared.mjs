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

export const percent = (value) => `${(value * 100).toFixed(2)}%`;

/** A report of `moefleet engine bench` as the command itself prints it. */
export const show = (report) => createRequire(import.meta.url)(join(root, 'services', 'cli', 'dist', 'bench', 'bench-report.js')).reportText(report);
