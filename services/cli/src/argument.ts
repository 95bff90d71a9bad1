/** Reads one flag or argument; commander puts the flag's name and value before the message. */
import { formatDuration, parseDuration, parseSize } from '@moefleet/runtime';
import { InvalidArgumentError } from 'commander';

export function numberFrom(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? NaN : Number(text);
    if (!Number.isFinite(value) || value < min || value > max) {
      throw new InvalidArgumentError(`Write a number from ${min} to ${max}.`);
    }
    return value;
  };
}

export function integerFrom(min: number, max: number = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = /^\s*[+-]?\d+\s*$/.test(text) ? Number(text) : NaN;
    if (!Number.isSafeInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(max === Number.MAX_SAFE_INTEGER
        ? `Write an integer of at least ${min}.` : `Write an integer from ${min} to ${max}.`);
    }
    return value;
  };
}

/** One value, or a list of them between commas. */
export function listOf(one: (text: string) => number): (text: string) => number | number[] {
  return (text) => {
    const values = text.split(',').map(one);
    return values.length === 1 ? values[0]! : values;
  };
}

const MOST_RANGE_VALUES = 10_000;

/** Values and ranges `from:to:step`, both ends included, between commas; ascending, each once. */
export function rangesOf(one: (text: string) => number): (text: string) => number[] {
  return (text) => {
    const values = text.split(',').flatMap((part) => {
      const bounds = part.split(':');
      if (bounds.length === 1) return [one(part)];
      const [from, to, step] = [one(bounds[0]!), one(bounds[1]!), bounds.length === 3 ? Number(bounds[2]) : 1];
      if (bounds.length > 3 || !(step > 0) || !(to >= from) || (to - from) / step > MOST_RANGE_VALUES) throw new InvalidArgumentError('Write values, or ranges from:to:step that go up, such as 8:32:4.');
      // Whole steps from the start, so that 0:0.3:0.1 ends with 0.3.
      return Array.from({ length: Math.floor((to - from) / step + 1e-9) + 1 }, (_, i) => one(String(Number((from + i * step).toPrecision(12)))));
    });
    return [...new Set(values)].sort((a, b) => a - b);
  };
}

/** Names between commas, each once. */
export function namesOf<T extends string>(known: readonly T[]): (text: string) => T[] {
  return (text) => {
    const names = text.split(',');
    for (const name of names) {
      if (!known.includes(name as T)) throw new InvalidArgumentError(`Write some of ${known.join(',')}.`);
    }
    return [...new Set(names)] as T[];
  };
}

export function sizeAbove(min: number): (text: string) => number {
  return (text) => {
    let bytes: number;
    try {
      bytes = parseSize(text);
    } catch {
      throw new InvalidArgumentError('Write bytes or a number with a unit, such as 8MiB or 1.5GiB.');
    }
    if (bytes < min) throw new InvalidArgumentError(`Write at least ${min} bytes.`);
    return bytes;
  };
}

/** Milliseconds. */
export function durationFrom(minMs: number, maxMs: number): (text: string) => number {
  return (text) => {
    let ms: number;
    try {
      ms = parseDuration(text);
    } catch {
      throw new InvalidArgumentError('Write a number with a unit, such as 90s, 2h or 7d.');
    }
    if (ms < minMs || ms > maxMs) throw new InvalidArgumentError(`Write a span from ${formatDuration(minMs)} to ${formatDuration(maxMs)}.`);
    return ms;
  };
}

/** An option given several times. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}
