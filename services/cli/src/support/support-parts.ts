/** The files of a support bundle, each text redacted on its way in. What cannot be had says why in its place. */
import { closeSync, fstatSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs';
import { arch, cpus, release, totalmem, type, version } from 'node:os';
import { basename, join } from 'node:path';
import { type Env, VERSION } from '@moefleet/runtime';
import { jsonText } from '../json-text';
import { isSecretName, redact } from './redact';

/** Of each log, from its end. */
export const MOST_LOG_BYTES = 1 << 20;
/** Of the latest deployments. */
const MOST_DEPLOY_LOGS = 40;
/** Variables that say how our programs, and those they start, are set up. */
const OURS = /^(MOEFLEET|OTEL|JAEGER|NODE|GRPC|REDIS)_|^(PATH|LANG|TZ|HTTPS?_PROXY|NO_PROXY)$/i;

export class SupportParts {
  readonly files = new Map<string, string>();

  constructor(private readonly literals: readonly string[]) {}

  text(path: string, text: string): void {
    this.files.set(path, redact(text, this.literals));
  }

  json(path: string, value: unknown): void {
    this.text(path, jsonText(value));
  }

  /** `make` may fail: then the reason takes its place. */
  async attempt(path: string, make: () => Promise<unknown> | unknown): Promise<void> {
    try {
      const made = await make();
      if (typeof made === 'string') this.text(path, made);
      else this.json(path, made);
    } catch (error) {
      this.text(`${path}.missing`, `${(error as Error).message}\n`);
    }
  }

  /** The end of a log file. */
  log(folder: string, file: string): Promise<void> {
    return this.attempt(`${folder}/${basename(file)}`, () => tail(file, MOST_LOG_BYTES));
  }
}

export function versions() {
  return { moefleet: VERSION, node: process.versions.node, openssl: process.versions.openssl, system: `${type()} ${release()} ${version()}`, arch: arch(), cores: cpus().length, memoryBytes: totalmem() };
}

/** Names of what is secret stay, so that it shows whether it is set. */
export function environment(env: Env): Record<string, string> {
  return Object.fromEntries(Object.entries(env).filter(([name, value]) => OURS.test(name) && value !== undefined).sort()
    .map(([name, value]) => [name, isSecretName(name) ? '[secret]' : value!]));
}

/** The known values of secret variables, which may also stand elsewhere. */
export function secretsOf(env: Env): string[] {
  return Object.entries(env).filter(([name, value]) => isSecretName(name) && value).map(([, value]) => value!);
}

export function latestDeployLogs(folder: string): string[] {
  const runs = listed(folder).sort().reverse();
  return runs.flatMap((run) => listed(join(folder, run)).filter((name) => name.endsWith('.log')).map((name) => join(folder, run, name))).slice(0, MOST_DEPLOY_LOGS);
}

function listed(folder: string): string[] {
  try {
    return statSync(folder).isDirectory() ? readdirSync(folder) : [];
  } catch {
    return [];
  }
}

/** A secret that is cut in two by where the tail begins is not recognised by its form: the first line goes. */
export function tail(file: string, most: number): string {
  const descriptor = openSync(file, 'r');
  try {
    const { size } = fstatSync(descriptor);
    if (size <= most) return readFileSync(descriptor, 'utf8');
    const buffer = Buffer.alloc(most);
    const read = readSync(descriptor, buffer, 0, most, size - most);
    const text = buffer.toString('utf8', 0, read);
    const begins = text.indexOf('\n') + 1;
    const rest = text.slice(begins);
    // Neither is the rest of a key whose head lies before.
    const end = /^[^]*?-----END [A-Z0-9 ]*PRIVATE KEY-----/.exec(rest);
    const headless = end && !end[0].includes('-----BEGIN');
    return `[the first ${size - read + begins} bytes are left out]\n${headless ? `[private key]${rest.slice(end[0].length)}` : rest}`;
  } finally {
    closeSync(descriptor);
  }
}
