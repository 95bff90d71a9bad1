/** Plain tables that survive a pipe: two spaces between columns, no frames, no colours. */
import Table from 'cli-table3';

const FRAMELESS = {
  top: '', 'top-mid': '', 'top-left': '', 'top-right': '',
  bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '',
  left: '', 'left-mid': '', mid: '', 'mid-mid': '', right: '', 'right-mid': '', middle: '  ',
};

/** `alignRight` lists the columns that hold numbers. */
export function table(head: readonly string[], rows: readonly (readonly string[])[], alignRight: readonly number[] = []): string {
  const made = new Table({
    head: [...head],
    chars: FRAMELESS,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
    colAligns: head.map((_, i) => (alignRight.includes(i) ? 'right' : 'left')),
  });
  made.push(...rows.map((row) => [...row]));
  return `${trimmed(made.toString())}\n`;
}

/** Names and values in two columns. */
export function pairs(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`.trimEnd()).join('\n') + '\n';
}

export const NONE = '-';

export function percent(value: number | null | undefined, digits = 1): string {
  return value === null || value === undefined ? NONE : `${(value * 100).toFixed(digits)}%`;
}

export function fixed(value: number | null | undefined, digits: number): string {
  return value === null || value === undefined ? NONE : value.toFixed(digits);
}

/** One number where all layers agree, `8-16` where they do not. */
export function capacityText(capacities: readonly number[]): string {
  if (capacities.length === 0) return NONE;
  const [low, high] = [Math.min(...capacities), Math.max(...capacities)];
  return low === high ? String(low) : `${low}-${high}`;
}

/** `a=b,c=d`, sorted. */
export function labelsText(labels: Readonly<Record<string, string>>): string {
  return Object.keys(labels).sort().map((key) => `${key}=${labels[key]!}`).join(',') || NONE;
}

function trimmed(text: string): string {
  return text.split('\n').map((line) => line.trimEnd()).join('\n');
}
