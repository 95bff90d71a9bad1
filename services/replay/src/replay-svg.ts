/** Rows of a replay as a plot: miss rate over what was varied most, a line for each other setting, bars for the bands. */
import type { ReplayRow } from './replay';
import { plot, type Series } from './svg-plot';

export function replaySvg(source: string, rows: readonly ReplayRow[]): string {
  const overCapacity = distinct(rows, ({ capacity }) => capacity) > 1 || distinct(rows, ({ lambda }) => lambda) < 2;
  const x = (row: ReplayRow) => (overCapacity ? row.capacity : row.lambda ?? 0);
  const lines = new Map<string, Series & { points: [number, number, number?][] }>();
  for (const row of rows) {
    const name = nameOf(row, overCapacity);
    const line = lines.get(name) ?? { name, points: [] };
    lines.set(name, line);
    const { missRate, missRateBand: band } = row;
    line.points.push([x(row), missRate * 100, band ? ((band.high - band.low) / 2) * 100 : undefined]);
  }
  for (const { points } of lines.values()) points.sort(([a], [b]) => a - b);
  return plot({ title: `Replay of ${source}`, xLabel: overCapacity ? 'capacity, experts per layer' : 'λ', yLabel: 'miss rate, %', series: [...lines.values()] });
}

function nameOf({ routing, lambda, topJ, maxRank, massThreshold, policy, capacity }: ReplayRow, overCapacity: boolean): string {
  const parts: string[] = [policy, routing];
  if (overCapacity && lambda !== null) parts.push(`λ ${lambda}`);
  if (maxRank !== null) parts.push(`rank ${maxRank}`);
  if (massThreshold !== null) parts.push(`mass ${massThreshold}`);
  if (topJ !== null && lambda !== 0) parts.push(`topJ ${topJ}`);
  if (!overCapacity) parts.push(`capacity ${capacity}`);
  return parts.join(', ');
}

function distinct<T>(rows: readonly ReplayRow[], of: (row: ReplayRow) => T): number {
  return new Set(rows.map(of)).size;
}
