/** Spans of time as people write them: `90s`, `2h`, `1h30m`, `7d`. */
const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };

/** Milliseconds, an integer above 0; throws a RangeError that names `text` and shows the form. */
export function parseDuration(text: string): number {
  const parts = [...text.trim().matchAll(/(\d+(?:\.\d+)?)(ms|[smhdw])/g)];
  const ms = Math.round(parts.reduce((sum, [, count, unit]) => sum + Number(count) * UNITS[unit!]!, 0));
  if (parts.map(([part]) => part).join('') !== text.trim() || !Number.isSafeInteger(ms) || ms <= 0) {
    throw new RangeError(`not a span of time: "${text}"; write a number with a unit, such as 90s, 2h, 1h30m or 7d`);
  }
  return ms;
}

/** The two largest units that say something: `1h 30m`. */
export function formatDuration(ms: number): string {
  let left = Math.max(0, Math.round(ms));
  if (left < 1000) return `${left}ms`;
  const parts: string[] = [];
  for (const unit of ['d', 'h', 'm', 's']) {
    const count = Math.floor(left / UNITS[unit]!);
    left -= count * UNITS[unit]!;
    if (count > 0) parts.push(`${count}${unit}`);
  }
  return parts.slice(0, 2).join(' ');
}
