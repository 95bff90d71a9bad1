/**
 * Reads one value of a program's configuration. Every program's `config.ts` merges flags over environment and calls
 * these once at start; nothing else reads the environment.
 */
import { parseSize } from './size';

export type Env = Readonly<Record<string, string | undefined>>;

/** A setting that makes no sense: names it, its value and what would be accepted. Programs exit with 2. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  constructor(readonly setting: string, readonly value: string, expected: string) {
    super(`${setting}: "${value}" is not ${expected}`);
  }
}

export function readNumber(name: string, value: string | undefined, fallback: number, min: number, max: number): number {
  if (value === undefined || value === '') return fallback;
  const number = Number(value);
  if (!Number.isFinite(number) || number < min || number > max) {
    throw new ConfigError(name, value, `a number from ${min} to ${max}`);
  }
  return number;
}

export function readInteger(name: string, value: string | undefined, fallback: number, min: number, max: number): number {
  const number = readNumber(name, value, fallback, min, max);
  if (!Number.isInteger(number)) throw new ConfigError(name, String(value), `an integer from ${min} to ${max}`);
  return number;
}

export function readSize(name: string, value: string | undefined, fallback: number): number {
  if (value === undefined || value === '') return fallback;
  try {
    return parseSize(value);
  } catch {
    throw new ConfigError(name, value, 'a size such as 8MiB or 1.5GiB');
  }
}

export function readBoolean(name: string, value: string | undefined, fallback: boolean): boolean {
  if (value === undefined || value === '') return fallback;
  if (['1', 'true', 'yes', 'on'].includes(value.toLowerCase())) return true;
  if (['0', 'false', 'no', 'off'].includes(value.toLowerCase())) return false;
  throw new ConfigError(name, value, 'true or false');
}

/** `a=b,c=d`; keys as in Kubernetes labels. */
export function readLabels(name: string, value: string | undefined): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const part of (value ?? '').split(',').map((text) => text.trim()).filter(Boolean)) {
    const match = /^([A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?)=([A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/.exec(part);
    if (!match) throw new ConfigError(name, part, 'a label such as class=jetson-orin');
    labels[match[1]!] = match[2] ?? '';
  }
  return labels;
}
